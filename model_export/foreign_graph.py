"""Builds the layers around a foreign network: bytes in, class ids out, as a bundle's graph must be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from model_export.foreign_batch import open_batch
from model_export.foreign_card import ForeignCard, ForeignInput, ForeignOutput
from model_export.foreign_model import ForeignModel
from model_export.servable import BYTE_MAX
from model_export.to_onnx import INPUT_NAME
from service.contract.model_card import CONFIDENCE, MASK, InputSize

_PREFIX = "surgseg."
_OLDEST_IR = 8
_LEAST_DEVIATION = 1e-8
_FLOAT, _BYTE = int(ir.DataType.FLOAT), int(ir.DataType.UINT8)


@dataclass(frozen=True)
class Form:
    """What the network gives for one picture: `(channels, height, width)`."""

    channels: int
    height: int
    width: int


def wrap_graph(
    model: ForeignModel, card: ForeignCard, size: InputSize, form: Form, has_confidence: bool = False
) -> ir.Model:
    """The network with uint8 RGB `(N, H, W, 3)` in and uint8 class ids `(N, H, W)` out, and perhaps confidences."""
    wrapped = ir.from_proto(model.proto)
    wrapped.ir_version = max(wrapped.ir_version, _OLDEST_IR)
    graph = wrapped.graph
    if model.batch is not None:
        open_batch(wrapped, model.batch)
    _forget_origin(wrapped)
    picture = next(value for value in graph.inputs if value.name == model.input_name)
    scores = next(value for value in graph.outputs if value.name == model.output_name)
    _make_way(graph)
    layers = _Layers(graph)
    image = _describe(ir.Value(name=INPUT_NAME), ir.DataType.UINT8, ("N", size.height, size.width, 3))
    prepared = _describe(
        layers.prepare(image, card.input), ir.DataType.FLOAT, ("N", 3, size.height, size.width)
    )
    ir.convenience.replace_all_uses_with(picture, prepared)
    graph.inputs[:] = [image]
    common.TopologicalSortPass()(wrapped)
    masks, confidences = layers.label(layers.unify(scores, form, size), card.output, form, has_confidence)
    graph.outputs[:] = [
        _describe(value, ir.DataType.UINT8, ("N", size.height, size.width))
        for value in ([masks, confidences] if confidences is not None else [masks])
    ]
    ir.passes.Sequential(common.RemoveUnusedNodesPass(), common.NameFixPass())(wrapped)
    return wrapped


def count_numbers(model: ForeignModel) -> int:
    """How many floating-point numbers the network's weights hold."""
    return sum(
        math.prod(tensor.dims) for tensor in model.proto.graph.initializer if tensor.data_type == _FLOAT
    )


def _describe(value: ir.Value, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    return value


def _forget_origin(model: ir.Model) -> None:
    """Exporters write down source lines, paths and shapes; the shapes may be those of one picture."""
    model.doc_string = model.graph.doc_string = None
    model.graph.name = "wrapped"
    for graph in model.graphs():
        graph.metadata_props.clear()
        for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
            value.metadata_props.clear()
            value.doc_string = None
        for node in graph:
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = value.shape = None


def _make_way(graph: ir.Graph) -> None:
    """Rename what has a name that the layers around it need."""
    taken = (INPUT_NAME, MASK, CONFIDENCE)
    values = [
        *graph.inputs,
        *graph.initializers.values(),
        *(v for node in graph.all_nodes() for v in node.outputs),
    ]
    for value in values:
        if value.name in taken or (value.name or "").startswith(_PREFIX):
            value.name = f"foreign.{value.name}"


class _Layers:
    """Adds nodes to a graph, each with a name of its own."""

    def __init__(self, graph: ir.Graph) -> None:
        self._tape = ir.tape.Tape(graph)
        self._count = 0

    def prepare(self, image: ir.Value, given: ForeignInput) -> ir.Value:
        """Bytes `(N, H, W, 3)` to the network's input, float32 `(N, 3, H, W)`."""
        images = self._add("Transpose", image, perm=[0, 3, 1, 2])
        if given.channels == "bgr":
            images = self._add("Gather", images, np.array([2, 1, 0], np.int64), axis=1)
        images = self._add("Cast", images, to=_FLOAT)
        if given.scaling is None:
            return self._standardise(images)
        mean, std = np.array(given.scaling.mean), np.array(given.scaling.std)
        # one multiplication and one addition for each channel, as in Servable
        scale, offset = 1 / (given.scaling.divide_by * std), -mean / std
        images = self._add("Mul", images, scale.astype(np.float32).reshape(1, 3, 1, 1))
        return self._add("Add", images, offset.astype(np.float32).reshape(1, 3, 1, 1))

    def _standardise(self, images: ir.Value) -> ir.Value:
        """Less each picture's own mean, over its own deviation, channel by channel."""
        axes = np.array([2, 3], np.int64)
        distance = self._add("Sub", images, self._add("ReduceMean", images, axes))
        variance = self._add("ReduceMean", self._add("Mul", distance, distance), axes)
        deviation = self._add("Max", self._add("Sqrt", variance), np.float32(_LEAST_DEVIATION))
        return self._add("Div", distance, deviation)

    def unify(self, scores: ir.Value, form: Form, size: InputSize) -> ir.Value:
        """The network's output as `(N, C, H, W)` at the canvas's size."""
        # What runtimes cannot work out from the network they learn here: the batch alone is open.
        shape = np.array([-1, form.channels, form.height, form.width], np.int64)
        scores = self._add("Reshape", scores, shape)
        _describe(scores, ir.DataType.FLOAT, ("N", form.channels, form.height, form.width))
        before, after = np.array([form.height, form.width]), np.array([size.height, size.width])
        if (before == after).all():
            return scores
        scales = (after / before).astype(np.float32)
        # A runtime works the size out from the scale again, so one that was rounded down must not cut off a row.
        short = np.floor(before.astype(np.float32) * scales) < after
        scales[short] = np.nextafter(scales[short], np.float32(np.inf))
        scales = np.concatenate([np.ones(2, np.float32), scales])
        enlarged = self._add(
            "Resize", scores, None, scales, mode="linear", coordinate_transformation_mode="half_pixel"
        )
        return _describe(enlarged, ir.DataType.FLOAT, ("N", form.channels, size.height, size.width))

    def label(
        self, scores: ir.Value, given: ForeignOutput, form: Form, has_confidence: bool
    ) -> tuple[ir.Value, ir.Value | None]:
        """The mask, and the confidence where it is wanted, uint8 `(N, H, W)` each."""
        if given.threshold is not None:
            labels, probability = self._label_above(scores, given, form)
        elif form.channels == 2:
            labels, probability = self._label_pair(scores, given)
        else:
            winner = self._add("ArgMax", scores, axis=1, keepdims=0)
            labels = self._add("Cast", winner, to=_FLOAT)
            shares = self._add("Softmax", scores, axis=1) if given.gives_logits else scores
            probability = self._largest(shares)
        # through float, because TensorRT has no cast from integers or truth to uint8
        masks = self._add("Cast", labels, to=_BYTE, output=MASK)
        if not has_confidence:
            return masks, None
        levels = self._add("Round", self._add("Mul", probability, np.float32(BYTE_MAX)))
        return masks, self._add("Cast", levels, to=_BYTE, output=CONFIDENCE)

    def _label_pair(self, scores: ir.Value, given: ForeignOutput) -> tuple[ir.Value, ir.Value]:
        """Of two classes a comparison finds the larger, ties included, without a reduction to 64-bit indices."""
        background, other = (self._add("Gather", scores, np.int64(index), axis=1) for index in (0, 1))
        labels = self._add("Cast", self._add("Greater", other, background), to=_FLOAT)
        if not given.gives_logits:
            return labels, self._add("Max", other, background)
        return labels, self._add("Sigmoid", self._add("Abs", self._add("Sub", other, background)))

    def _label_above(self, scores: ir.Value, given: ForeignOutput, form: Form) -> tuple[ir.Value, ir.Value]:
        """The class of the largest score where it is above the threshold, the background elsewhere."""
        assert given.threshold is not None
        limit = given.threshold
        if given.gives_logits:
            limit = math.log(limit / (1 - limit))
        is_single = form.channels == 1
        largest = self._add("Gather", scores, np.int64(0), axis=1) if is_single else self._largest(scores)
        is_class = self._add("Greater", largest, np.float32(limit))
        labels = self._add("Cast", is_class, to=_FLOAT)
        if not is_single:
            winner = self._add("Cast", self._add("ArgMax", scores, axis=1, keepdims=0), to=_FLOAT)
            labels = self._add("Mul", labels, self._add("Add", winner, np.float32(1)))
        share = self._add("Sigmoid", largest) if given.gives_logits else largest
        return labels, self._add("Where", is_class, share, self._add("Sub", np.float32(1), share))

    def _largest(self, scores: ir.Value) -> ir.Value:
        return self._add("ReduceMax", scores, np.array([1], np.int64), keepdims=0)

    def _add(self, operator: str, *inputs: Any, output: str = "", **attributes: Any) -> ir.Value:
        """A node; inputs that are arrays become constants."""
        values = [
            self._constant(each) if isinstance(each, np.ndarray | np.generic) else each for each in inputs
        ]
        self._count += 1
        name = output or f"{_PREFIX}{self._count}"
        return self._tape.op(operator, values, attributes, output=ir.Value(name=name), name=name)

    def _constant(self, array: Any) -> ir.Value:
        self._count += 1
        return self._tape.initializer(ir.tensor(np.asarray(array)), f"{_PREFIX}{self._count}")
