"""Every call of ours to TensorRT and CUDA exists: mypy compares them with the real bindings, of TensorRT 10 and 11.

No engine can be built or run without a GPU. What can be proven without one is that each class, method, keyword and
member of an enumeration is there and takes what we give it, and that the proof notices when one is not.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.model_export.nvidia_bindings import TENSORRT, write_cuda_stubs, write_tensorrt_stubs

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
BACKEND = "service/backends/tensorrt.py"
LOG = "service/backends/tensorrt_log.py"
CUDA = "service/backends/cuda_device.py"
BUILDER = "model_export/to_tensorrt.py"
PROGRESS = "model_export/build_progress.py"
CHECKED = (
    BACKEND,
    LOG,
    CUDA,
    BUILDER,
    PROGRESS,
    "service/backends/engine_cache.py",
    "model_export/build_command.py",
)
TQDM = {"update", "close"}  # which has methods of the same names as the bindings, and no types
# What stubs made from C++ may have: none of it hides a name or turns a known type into an unknown one.
TOLERATED = "type-arg,no-untyped-def,override,overload-cannot-match,overload-overlap,assignment,misc"


@dataclass(frozen=True)
class Workspace:
    """A copy of our code, and what mypy needs to know of the bindings of each version of TensorRT."""

    folder: Path
    stubs: dict[str, Path]

    def check(self, major: str) -> str:
        """What mypy finds wrong; nothing where all is well."""
        path = os.pathsep.join(map(str, (self.stubs[major], self.stubs["cuda"])))
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", *CHECKED],
            cwd=self.folder,
            env={**os.environ, "MYPYPATH": path},
            capture_output=True,
            text=True,
            timeout=170,
        )
        assert not done.stderr, done.stderr
        return done.stdout

    @contextmanager
    def changed(self, **texts: str) -> Iterator[None]:
        """Other texts in place of files, named with `__` for a slash, for the length of the block."""
        before = {name: (self.folder / name).read_text(encoding="utf-8") for name in texts}
        try:
            for name, text in texts.items():
                (self.folder / name).write_text(text, encoding="utf-8")
            yield
        finally:
            for name, text in before.items():
                (self.folder / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("bindings")
    stubs = {major: folder / f"tensorrt-{major}" for major in TENSORRT}
    for major in TENSORRT:
        write_tensorrt_stubs(major, stubs[major])
    stubs["cuda"] = folder / "cuda-stubs"
    write_cuda_stubs(stubs["cuda"])
    for package in ("service", "model_export"):
        for path in (REPOSITORY / package).rglob("*.py"):
            copy = folder / path.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    (folder / "mypy.ini").write_text(configure(), encoding="utf-8")
    return Workspace(folder, stubs)


def configure() -> str:
    """The project's configuration, but nothing of NVIDIA's may be missing, and its stubs are no work of ours."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    missing = [each["module"] for each in project["overrides"] if each.get("ignore_missing_imports")]
    others = [name for names in missing for name in names if not re.match("tensorrt|cuda", name)]
    return "\n".join(
        [
            "[mypy]",
            f"python_version = {project['python_version']}",
            "plugins = pydantic.mypy",
            "strict = True",
            "warn_unused_ignores = False",
            "follow_imports = silent",
            f"[mypy-{','.join(others)}]",
            "ignore_missing_imports = True",
            "[mypy-tensorrt,cuda.*]",
            f"disable_error_code = {TOLERATED}",
            "follow_imports = normal",
        ]
    )


@pytest.mark.parametrize("major", TENSORRT)
def test_every_call_is_in_the_bindings(workspace: Workspace, major: str) -> None:
    assert workspace.check(major) == ""


# A file, what it says, what it would say, the versions in which that is wrong, and what the error must name.
MISTAKES = [
    (BUILDER, "BuilderFlag.TF32", "BuilderFlag.FP16", ("11",), '"FP16"'),
    (BUILDER, "CreationFlag.STRONGLY_TYPED", "CreationFlag.EXPLICIT_BATCH", ("11",), '"EXPLICIT_BATCH"'),
    (BACKEND, "device_memory_size_v2", "device_memory_size", ("11",), '"device_memory_size"'),
    (BACKEND, "execute_async_v3(", "execute_async_v2(", ("10", "11"), '"execute_async_v2"'),
    (BACKEND, "num_io_tensors", "num_bindings", ("10", "11"), '"num_bindings"'),
    (BACKEND, "set_tensor_address(name, address)", "set_tensor_address(address, name)", ("10", "11"), "str"),
    (BACKEND, "set_device_memory(self._scratch, ", "set_device_memory(", ("10", "11"), '"size"'),
    (BUILDER, "ignore_mismatch=", "ignore_mismatches=", ("10", "11"), '"ignore_mismatches"'),
    (BUILDER, "get_error(index)", "get_error()", ("10", "11"), '"index"'),
    (
        PROGRESS,
        "def phase_finish(self, phase_name: str)",
        "def phase_finish(self)",
        ("10", "11"),
        "phase_finish",
    ),
    (LOG, "severity: trt.ILogger.Severity", "severity: str", ("10", "11"), '"log"'),
    (CUDA, "cudaStreamNonBlocking", "cudaStreamNonBlock", ("10", "11"), "cudaStreamNonBlock"),
    (CUDA, "array.nbytes, kind, self.handle", "array.nbytes, kind", ("10", "11"), '"stream"'),
    (CUDA, "cudaGraphInstantiate(graph, 0)", "cudaGraphInstantiate(graph)", ("10", "11"), '"flags"'),
]


@pytest.mark.parametrize(
    ("file", "said", "says", "wrong_in", "named"), MISTAKES, ids=[each[2] for each in MISTAKES]
)
def test_a_mistake_in_a_call_is_found(
    workspace: Workspace, file: str, said: str, says: str, wrong_in: tuple[str, ...], named: str
) -> None:
    text = (workspace.folder / file).read_text(encoding="utf-8")
    assert said in text
    with workspace.changed(**{file: text.replace(said, says)}):
        for major in TENSORRT:
            found = workspace.check(major)
            assert (named in found) == (major in wrong_in), found


@pytest.mark.parametrize("major", TENSORRT)
def test_no_name_of_the_bindings_escapes(workspace: Workspace, major: str) -> None:
    """Misspell all of them at once, those of modules and then those of objects: each must be found in its line."""
    stubs = "".join(path.read_text(encoding="utf-8") for path in (workspace.stubs[major]).glob("*.pyi"))
    members = set(re.findall(r"^    +(?:def )?([a-zA-Z]\w+)(?:\(|:)", stubs, re.MULTILINE))
    for is_of_module in (True, False):
        texts, expected = {}, set()
        for file in (BACKEND, LOG, CUDA, BUILDER, PROGRESS):
            text = (workspace.folder / file).read_text(encoding="utf-8")
            texts[file], misspelt = misspell(
                text, members, "runtime" if file == CUDA else "trt", is_of_module
            )
            expected |= {f"{file}:{line}: {name}" for line, name in misspelt}
        with workspace.changed(**texts):
            output = workspace.check(major)
        assert len(expected) > 10
        errors = re.findall(r"^(\S+?:\d+): error: (.*)", output, re.MULTILINE)
        found = {f"{place}: {name}" for place, said in errors for name in re.findall(r"\w+_misspelt", said)}
        assert expected - found == set()


def misspell(
    text: str, members: set[str], module: str, is_of_module: bool
) -> tuple[str, set[tuple[int, str]]]:
    """The text with `_misspelt` after each attribute of the module, or else of its objects; lines and names."""
    lines, done = text.splitlines(), set()
    attributes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    # stubs list the methods of containers too, as pop of a vector; here they are those of dictionaries and lists
    ours = (
        TQDM
        | {*dir(dict), *dir(list)}
        | {node.attr for node in attributes if ast.unparse(node.value) == "self"}
    )
    for node in sorted(attributes, key=lambda node: (node.end_lineno, node.end_col_offset), reverse=True):
        of_module = isinstance(node.value, ast.Name) and node.value.id == module
        is_theirs = of_module or node.attr.startswith("cuda") or node.attr in members - ours
        if of_module != is_of_module or not is_theirs:
            continue
        assert node.end_lineno is not None
        line, end = lines[node.end_lineno - 1], node.end_col_offset
        lines[node.end_lineno - 1] = f"{line[:end]}_misspelt{line[end:]}"
        done.add((node.end_lineno, f"{node.attr}_misspelt"))
    return "\n".join(lines) + "\n", done
