"""Whether a graph lies in one file: weights that an ONNX file keeps elsewhere would have no hash in the card.

Both runtimes look for such files, beside a model that they open from a path and in the current directory for one that
they are given as bytes, so it is found out here, without either. Only the sizes of fields are read, never the weights.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
"""Of each message that a tensor can be reached from: its fields that lead on, and what they hold."""

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_VARINT, _FIXED_64, BYTES, _FIXED_32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED_64: 8, _FIXED_32: 4}
_TAG_BYTES, _VARINT_BYTES = 5, 10


class Field(NamedTuple):
    """A field of a message as it lies in a file, from `start` to `end`; the value of bytes is where they start."""

    number: int
    kind: int
    value: int
    size: int
    start: int
    end: int


def is_one_file(path: Path) -> bool:
    """Whether no tensor of an ONNX file keeps its data in another. Raises ValueError for what is no ONNX file."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _is_one_file(data)


def _is_one_file(data: mmap.mmap) -> bool:
    # a list and not calls: a file could nest its graphs deeper than Python recurses
    waiting = [("Model", 0, len(data))]
    while waiting:
        message, at, end = waiting.pop()
        for field, kind, value, size, *_ in read_fields(data, at, end):
            if message == "Tensor" and (
                (field == _EXTERNAL_DATA and kind == BYTES)
                or (field == _DATA_LOCATION and kind == _VARINT and value)
            ):
                return False
            child = _CHILDREN[message].get(field)
            if child is not None and kind == BYTES:
                waiting.append((child, value, value + size))
    return True


def read_fields(data: mmap.mmap | bytes, at: int, end: int) -> Iterator[Field]:
    """The fields of the message from `at` to `end`. Raises ValueError where there is none."""
    while at < end:
        start = at
        tag, at = _read_varint(data, at, end, _TAG_BYTES)
        # as the runtimes' parser does: what is beyond 32 bits is dropped
        field, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7
        value, size = at, _FIXED_SIZES.get(kind, 0)
        if kind == _VARINT:
            value, at = _read_varint(data, at, end, _VARINT_BYTES)
        elif kind == BYTES:
            size, value = _read_varint(data, at, end, _TAG_BYTES)
            at = value
        elif kind not in _FIXED_SIZES:
            raise ValueError(f"it has a field of wire type {kind}")
        at += size
        if field == 0 or at > end:
            raise ValueError("it is cut short, or of another format")
        yield Field(field, kind, value, size, start, at)


def _read_varint(data: mmap.mmap | bytes, at: int, end: int, longest: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where it ends."""
    value = 0
    for index in range(min(longest, end - at)):
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("it is cut short, or of another format")
