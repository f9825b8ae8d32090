"""What holds for every file of the repository."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("service", "training", "model_export")
BUNDLES = "service/bundles/"
MAX_BYTES = 1_000_000
MAX_BUNDLE_BYTES = 10_000_000
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
BINARY = {".png", ".onnx", ".jpg", ".mp4", ".ico", ".woff2"}

# A letter in brackets, so that this file does not find itself.
REGISTRY_HOSTS = re.compile(r"p[y]pi\.org|p[y]thonhosted\.org|download\.p[y]torch\.org|n[p]mjs\.org")
MACHINE_PATHS = re.compile(r"(?<![\w./])/(?:w[o]rk|r[o]ot|U[s]ers)/")

RUNS_CODE = re.compile(
    r"(pickle|marshal|shelve|dill|joblib|yaml|torch\.jit|torch\.hub)\.(load|loads|open)|eval|exec"
)
# both ends of its pipe are the same program
SPEAKS_TO_ITSELF = "service/bench/child_process.py"


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths of every file that git keeps or would keep, relative to the repository."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("this is not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return sorted(path for path in set(listed.splitlines()) if (REPOSITORY / path).is_file())


@pytest.fixture(scope="module")
def texts(tracked: list[str]) -> dict[str, str]:
    paths = [path for path in tracked if Path(path).suffix not in BINARY]
    return {path: (REPOSITORY / path).read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def modules(texts: dict[str, str]) -> dict[str, ast.Module]:
    return {path: ast.parse(text, path) for path, text in texts.items() if path.endswith(".py")}


@pytest.mark.parametrize("pattern", [REGISTRY_HOSTS, MACHINE_PATHS], ids=["registry hosts", "machine paths"])
def test_no_file_names_a_place_that_others_do_not_have(
    texts: dict[str, str], pattern: re.Pattern[str]
) -> None:
    found = {path: match.group() for path, text in texts.items() if (match := pattern.search(text))}
    assert found == {}


@pytest.mark.parametrize("text", ["/{}oot/x", "see /wo{}k/main", "https://py{}i.o{}g/simple"])
def test_the_patterns_find_what_they_are_for(text: str) -> None:
    whole = text.format("r") if text.count("{}") == 1 else text.format("p", "r")
    assert REGISTRY_HOSTS.search(whole) or MACHINE_PATHS.search(whole)


def test_files_are_small_and_the_bundles_fit_in_a_clone(tracked: list[str]) -> None:
    sizes = {path: (REPOSITORY / path).stat().st_size for path in tracked}
    assert [path for path in sizes if sizes[path] > MAX_BYTES and not path.startswith(BUNDLES)] == []
    assert sum(size for path, size in sizes.items() if path.startswith(BUNDLES)) <= MAX_BUNDLE_BYTES


def test_no_module_has_a_vague_name(tracked: list[str]) -> None:
    names = {path: {Path(path).stem, *Path(path).parent.parts} for path in tracked if path.endswith(".py")}
    assert [path for path, parts in names.items() if parts & VAGUE_NAMES] == []


def test_every_module_says_what_it_is(modules: dict[str, ast.Module]) -> None:
    silent = [path for path, tree in modules.items() if tree.body and not ast.get_docstring(tree)]
    assert [path for path in silent if path.startswith(PACKAGES)] == []


def test_everything_public_says_what_it_does(modules: dict[str, ast.Module]) -> None:
    silent = []
    for path, tree in modules.items():
        if path.startswith(PACKAGES):
            public = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
            silent += [
                f"{path}: {node.name}"
                for node in public
                if not node.name.startswith("_") and not ast.get_docstring(node)
            ]
    assert silent == []


def test_files_and_functions_stay_short(texts: dict[str, str], modules: dict[str, ast.Module]) -> None:
    long_files = [path for path in modules if texts[path].count("\n") > MAX_FILE_LINES]
    assert long_files == []
    functions = [
        (path, node)
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [f"{path}: {node.name}" for path, node in functions if length(node) > MAX_FUNCTION_LINES]
    assert long == []


def test_no_file_is_loaded_in_a_way_that_could_run_what_it_holds(modules: dict[str, ast.Module]) -> None:
    calls = [
        (path, ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords})
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]
    loads = [(path, options.get("weights_only")) for path, name, options in calls if name == "torch.load"]
    assert len(loads) > 1
    assert [path for path, weights_only in loads if weights_only != "True"] == []
    found = {path for path, name, options in calls if RUNS_CODE.fullmatch(name) or "allow_pickle" in options}
    assert {path for path in found if path.startswith(PACKAGES)} == {SPEAKS_TO_ITSELF}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring not counted."""
    first, last = function.body[0], function.end_lineno or function.lineno
    documented = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return last - function.lineno + 1 - docstring
