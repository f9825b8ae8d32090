"""What TensorRT takes of our graphs, and in which form. It needs neither TensorRT nor the `onnx` package to say so.

TensorRT takes bytes into a cast and into nothing else, not even a transposition; our graphs transpose the image first.
Both orders give the same numbers, so it is given the graph with the two exchanged; the bundle's own file stays as it
is. And it takes numbers of 8 bits only around 0, not those with a zero point that are best on processors.
"""

from __future__ import annotations

from pathlib import Path

from service.backends.base import reason_against_graph
from service.backends.graphs import graph_error
from service.contract.bundle import Bundle
from service.contract.graph_file import BYTES, Field, read_fields
from service.contract.model_card import Precision

IMAGE = "image"
# The numbers of fields in onnx.proto, which never change.
_GRAPH = 7
_NODE, _INITIALIZER, _VALUE_INFO = 1, 5, 13
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4
_VALUE_NAME, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, 8
_UINT8 = 2
_STEPS = {b"QuantizeLinear", b"DequantizeLinear"}


def reason_against_types(bundle: Bundle, precision: Precision) -> str | None:
    """Why TensorRT does not take the bundle's graph of a precision, in words; None where it may. Raises BundleError."""
    reason = reason_against_graph(bundle, precision)
    if reason is None and precision == "int8" and _has_unsigned_steps(bundle.path_of(precision)):
        return "its graph in int8 has unsigned numbers with a zero point, and TensorRT takes only signed ones around 0"
    return reason


def read_for_tensorrt(path: Path) -> bytes:
    """An ONNX model as TensorRT takes it. Raises BundleError for a file that is none."""
    try:
        return cast_before_transpose(path.read_bytes())
    except ValueError as error:
        raise graph_error(path, f"is no ONNX model: {error}", "an ONNX model") from error


def cast_before_transpose(model: bytes) -> bytes:
    """The ONNX model with its image cast before it is transposed; as it was where it is not transposed first.

    Raises ValueError for bytes that are no ONNX model.
    """
    return b"".join(
        _encode(_GRAPH, _reorder(model[each.value : each.end]))
        if each.number == _GRAPH
        else _whole(model, each)
        for each in read_fields(model, 0, len(model))
    )


def _reorder(graph: bytes) -> bytes:
    fields = list(read_fields(graph, 0, len(graph)))
    nodes = {index: graph[each.value : each.end] for index, each in enumerate(fields) if each.number == _NODE}
    first = [index for index, node in nodes.items() if IMAGE.encode() in _texts(node, _INPUT)]
    if len(first) != 1 or _texts(nodes[first[0]], _OPERATOR) != [b"Transpose"]:
        return graph
    (between,) = _texts(nodes[first[0]], _OUTPUT)
    second = [index for index, node in nodes.items() if between in _texts(node, _INPUT)]
    if len(second) != 1 or _texts(nodes[second[0]], _OPERATOR) != [b"Cast"]:
        return graph
    transpose, cast = nodes[first[0]], nodes[second[0]]
    changed = {first[0]: _exchange(transpose, cast), second[0]: _exchange(cast, transpose)}
    return b"".join(
        _encode(_NODE, changed[index]) if index in changed else _whole(graph, each)
        for index, each in enumerate(fields)
        # what lies between has another type and shape now, which whoever reads the graph can work out
        if each.number != _VALUE_INFO or _texts(graph[each.value : each.end], _VALUE_NAME) != [between]
    )


def _exchange(place: bytes, operation: bytes) -> bytes:
    """A node with the inputs and outputs of one and all the rest of another."""
    ends = [each for each in read_fields(place, 0, len(place)) if each.number in (_INPUT, _OUTPUT)]
    rest = [
        each for each in read_fields(operation, 0, len(operation)) if each.number not in (_INPUT, _OUTPUT)
    ]
    return b"".join([*(_whole(place, each) for each in ends), *(_whole(operation, each) for each in rest)])


def _has_unsigned_steps(path: Path) -> bool:
    """Whether a node that quantizes, or takes it back, has a zero point of unsigned 8 bits."""
    model = path.read_bytes()
    unsigned: set[bytes] = set()
    steps: list[bytes] = []
    for graph in read_fields(model, 0, len(model)):
        if graph.number != _GRAPH:
            continue
        for each in read_fields(model, graph.value, graph.end):
            content = model[each.value : each.end]
            if each.number == _INITIALIZER and _number(content, _TENSOR_TYPE) == _UINT8:
                unsigned.update(_texts(content, _TENSOR_NAME))
            elif each.number == _NODE and _STEPS.intersection(_texts(content, _OPERATOR)):
                steps += _texts(content, _INPUT)[2:]
    return not unsigned.isdisjoint(steps)


def _texts(message: bytes, number: int) -> list[bytes]:
    fields = read_fields(message, 0, len(message))
    return [message[each.value : each.end] for each in fields if each.number == number and each.kind == BYTES]


def _number(message: bytes, number: int) -> int:
    fields = read_fields(message, 0, len(message))
    return next((each.value for each in fields if each.number == number and each.kind != BYTES), 0)


def _whole(message: bytes, field: Field) -> bytes:
    return message[field.start : field.end]


def _encode(number: int, payload: bytes) -> bytes:
    return _encode_varint(number << 3 | BYTES) + _encode_varint(len(payload)) + payload


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
