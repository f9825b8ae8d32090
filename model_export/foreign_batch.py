"""Opens the batch of a network that was exported for one picture, where that is written into its layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from model_export.to_onnx import fix_scales


def open_batch(model: ir.Model, batch: int) -> None:
    """Change what exporters write down of a batch that is fixed so that it gives the same for that one, and any other.

    Not every network can be opened so; whether this one could shows when it runs on two pictures.
    """
    common.ShapeInferencePass(strict_mode=False)(model)
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Reshape":
            _open_shape(node, batch)
        elif node.op_type == "Resize":
            fix_scales(node)


def _open_shape(node: ir.Node, batch: int) -> None:
    """Leave the first length of a constant shape to the runtime, which works it out from what there is."""
    lengths = _read_constant(node.inputs[1])
    if lengths is None or not len(lengths) or 0 in lengths:
        return
    opened = lengths.copy()
    if -1 not in lengths:
        opened[0] = -1
    elif lengths[0] == batch == _read_first_length(node.inputs[0]):
        opened[0] = 0  # as many as come in; without the attribute by which 0 would mean none
        node.attributes.pop("allowzero", None)
    else:
        return
    constant = ir.Value(name=f"{node.outputs[0].name}_shape", const_value=ir.tensor(opened))
    assert node.graph is not None
    node.graph.register_initializer(constant)
    node.replace_input_with(1, constant)


def _read_first_length(value: ir.Value | None) -> int | None:
    """None where it is open, or nothing is known of it."""
    if value is None or value.shape is None or len(value.shape) == 0:
        return None
    length = value.shape[0]
    return length if isinstance(length, int) else None


def _read_constant(value: ir.Value | None) -> NDArray[np.int64] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())
