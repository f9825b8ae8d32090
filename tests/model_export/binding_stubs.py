"""Writes what mypy needs to know of NVIDIA's bindings by asking the bindings themselves.

Run as a program where they can be imported: `python binding_stubs.py tensorrt|cuda FOLDER`.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mypy import stubgen

_TYPES_OF_C = {"int": "int", "unsigned": "int", "size_t": "int", "float": "float", "bool": "bool"}


def write_tensorrt(folder: Path) -> None:
    """`tensorrt.pyi`: what stubgen reads from the signatures, and what it cannot see."""
    package = importlib.import_module("tensorrt_bindings")
    bindings = importlib.import_module("tensorrt_bindings.tensorrt")
    stubgen.main(["--quiet", "--inspect-mode", "-m", bindings.__name__, "-o", str(folder / "raw")])
    text = (folder / "raw" / "tensorrt_bindings" / "tensorrt.pyi").read_text(encoding="utf-8")
    # the data type called bool would hide Python's own from every signature
    text = re.sub(r"^bool: DataType\n", "", text, flags=re.MULTILINE)
    text = _loosen_impossible(_fill_signatures(text, bindings))
    for name, kind in vars(bindings).items():
        if isinstance(kind, type) and _has_buffer(kind):
            start = f"class {name}:\n"
            text = text.replace(start, f"{start}    def __buffer__(self, flags: int, /) -> memoryview: ...\n")
    (folder / "tensorrt.pyi").write_text(f"{text}\n__version__: str\n", encoding="utf-8")
    assert isinstance(package.__version__, str)


def _fill_signatures(text: str, bindings: ModuleType) -> str:
    """Put in signatures that stubgen gave up on because of the name of a C++ class, `nvonnxparser::IParserError`."""
    owner = ""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if found := re.match(r"class (\w+)", line):
            owner = found[1]
        if found := re.fullmatch(r"    def (\w+)\(self, \*args, \*\*kwargs\): \.\.\.", line):
            stated = getattr(getattr(bindings, owner), found[1]).__doc__.splitlines()[0]
            if signature := re.fullmatch(r"\w+\(self: [\w.]+(.*)\) -> \w+::I?(\w+)", stated):
                lines[number] = f"    def {found[1]}(self{signature[1]}) -> {signature[2]}: ..."
    return "\n".join(lines)


def _loosen_impossible(text: str) -> str:
    """Let what has a signature that Python does not allow (a default before none) take anything. We call none of it."""
    lines = text.splitlines()
    while True:
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            number = (error.lineno or 1) - 1
            lines[number] = re.sub(r"\(self, .*\) ->", "(self, *args: Any, **kwargs: Any) ->", lines[number])
        else:
            return "\n".join(lines)


def _has_buffer(kind: type) -> bool:
    """Whether a class written in C gives its memory to `bytes` and `memoryview`."""
    get_slot = ctypes.pythonapi.PyType_GetSlot
    get_slot.restype, get_slot.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_int]
    return get_slot(kind, 1) is not None  # Py_bf_getbuffer


def write_cuda(folder: Path) -> None:
    """`cuda/bindings/runtime.pyi`, from docstrings: the functions are of Cython, which stubgen cannot read."""
    runtime = importlib.import_module("cuda.bindings.runtime")
    lines = ["from typing import Any, ClassVar"]
    for name, each in sorted(vars(runtime).items()):
        if name.startswith("_") or not name.startswith("cuda"):
            continue
        if isinstance(each, type):
            lines += _describe_class(name, each)
        elif isinstance(each, int):
            lines.append(f"{name}: int")
        elif callable(each):
            lines.append(_describe_function(name, each.__doc__ or "", vars(runtime)))
    package = folder / "cuda" / "bindings"
    package.mkdir(parents=True)
    for each in (package, package.parent):
        (each / "__init__.pyi").touch()
    (package / "runtime.pyi").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _describe_class(name: str, kind: type) -> list[str]:
    members: dict[str, Any] = getattr(kind, "__members__", {})
    if members:
        lines = [f"    {member}: ClassVar[{name}]" for member in members]
        return [f"class {name}(int):", "    name: str", "    value: int", *lines]
    attributes = [f"    {each}: Any" for each in dir(kind) if not each.startswith("_")]
    if hasattr(kind, "__int__"):
        attributes.append("    def __int__(self) -> int: ...")
    return [f"class {name}:", *(attributes or ["    pass"])]


def _describe_function(name: str, documentation: str, known: Mapping[str, object]) -> str:
    """`cudaHostAlloc(size_t size, unsigned int flags)` and its section "Returns", as a line of Python."""
    signature = re.match(rf"{name}\((.*)\)", documentation)
    returned = re.search(
        r"^Returns\n-+\n(.*?)(?=^[^\n]+\n-{3,}$|\Z)", documentation, re.DOTALL | re.MULTILINE
    )
    if signature is None or returned is None:
        return f"# {name} is not documented"
    arguments = [_describe_argument(each) for each in signature[1].split(", ") if each]
    results = [line.rpartition(" : ")[2] for line in returned[1].splitlines() if line and line[0] != " "]
    kinds = [re.sub(r":py:obj:`~?\.?(\w+)`", r"\1", each).partition(".")[0] for each in results]
    given = [each if each in known or each in ("int", "bytes", "float") else "Any" for each in kinds]
    line = f"def {name}({', '.join(arguments)}) -> tuple[{', '.join(given)}]: ..."
    line = re.sub(r": (cuda\w+)", lambda found: found[0] if found[1] in known else ": Any", line)
    try:
        ast.parse(line)
    except SyntaxError:
        return f"# {name} is documented in a way that is not understood"
    return line


def _describe_argument(text: str) -> str:
    """Of `size_t size`, `kind: cudaMemcpyKind` or `stream`, which may be any handle."""
    name, _, kind = text.partition(": ")
    first = name.split()[0]
    if kind:
        return f"{name}: {kind if kind.startswith('cuda') else 'Any'}"
    return f"{name.split()[-1]}: {_TYPES_OF_C.get(first, 'Any') if ' ' in name else 'Any'}"


if __name__ == "__main__":
    {"tensorrt": write_tensorrt, "cuda": write_cuda}[sys.argv[1]](Path(sys.argv[2]))
