"""TensorRT takes bytes into a cast and into nothing else, not even a transposition; our graphs transpose them first.

Both orders give the same numbers, so TensorRT is given the graph with the two exchanged. The bundle's own file stays as
it is. Of an ONNX file only the nodes' outer form is read here, by the encoding of protocol buffers: what runs the
service does not have the `onnx` package.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from service.backends.graphs import graph_error

# The numbers of fields in onnx.proto, which never change.
_GRAPH = 7
_NODE, _VALUE_INFO, _VALUE_NAME = 1, 13, 1
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


class _Field(NamedTuple):
    number: int
    encoded: bytes
    payload: bytes
    """Without key and length; empty for a field that is no bytes."""


def read_for_tensorrt(path: Path) -> bytes:
    """An ONNX model as TensorRT takes it. Raises BundleError for a file that is none."""
    try:
        return cast_before_transpose(path.read_bytes())
    except ValueError as error:
        raise graph_error(path, f"is no ONNX model: {error}", "an ONNX model") from error


def cast_before_transpose(model: bytes, image: str = "image") -> bytes:
    """The ONNX model with the input `image` cast before it is transposed; as it was where it is not transposed first.

    Raises ValueError for bytes that are no ONNX model.
    """
    fields = list(_split(model))
    return b"".join(
        _encode(_GRAPH, _reorder(each.payload, image.encode())) if each.number == _GRAPH else each.encoded
        for each in fields
    )


def _reorder(graph: bytes, image: bytes) -> bytes:
    fields = list(_split(graph))
    nodes = {index: list(_split(each.payload)) for index, each in enumerate(fields) if each.number == _NODE}
    first = [index for index, node in nodes.items() if image in _texts(node, _INPUT)]
    if len(first) != 1 or _texts(nodes[first[0]], _OPERATOR) != [b"Transpose"]:
        return graph
    (between,) = _texts(nodes[first[0]], _OUTPUT)
    second = [index for index, node in nodes.items() if between in _texts(node, _INPUT)]
    if len(second) != 1 or _texts(nodes[second[0]], _OPERATOR) != [b"Cast"]:
        return graph
    transpose, cast = nodes[first[0]], nodes[second[0]]
    changed = {first[0]: _exchange(transpose, cast), second[0]: _exchange(cast, transpose)}
    return b"".join(
        _encode(_NODE, changed[index]) if index in changed else each.encoded
        for index, each in enumerate(fields)
        # what lies between has another type and shape now, which whoever reads the graph can work out
        if each.number != _VALUE_INFO or _texts(list(_split(each.payload)), _VALUE_NAME) != [between]
    )


def _exchange(place: list[_Field], operation: list[_Field]) -> bytes:
    """A node with the inputs and outputs of one and all the rest of another."""
    kept = [each.encoded for each in place if each.number in (_INPUT, _OUTPUT)]
    return b"".join(kept + [each.encoded for each in operation if each.number not in (_INPUT, _OUTPUT)])


def _texts(fields: list[_Field], number: int) -> list[bytes]:
    return [each.payload for each in fields if each.number == number]


def _split(message: bytes) -> Iterator[_Field]:
    """The fields of a message. Raises ValueError where it is none."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        kind, size = key & 7, 0
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _BYTES:
            size, at = _read_varint(message, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"{kind} is no kind of field")
        end = at + size
        if end > len(message):
            raise ValueError("the message is cut off")
        yield _Field(key >> 3, message[start:end], message[at:end] if kind == _BYTES else b"")
        at = end


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("the message is cut off")


def _encode(number: int, payload: bytes) -> bytes:
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(payload)) + payload


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
