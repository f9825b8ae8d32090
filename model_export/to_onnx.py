"""Writes a servable network as one ONNX file that names no machine and no source file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from model_export.graph_passes import multiply_last_resize, save_graph
from model_export.servable import Servable
from service.contract.model_card import InputSize, Model, ModelCard
from service.errors import BundleError

INPUT_NAME = "image"
CARD_KEY = "surgseg.card"
WRITTEN_LATER: dict[str, Any] = {"files": {}, "parity": (), "models": {"float32": Model()}}
"""The fields of the card that are not known yet when it is written into the graph, as they are there."""
# What the exporter writes natively, so nothing is converted; ONNX Runtime, OpenVINO and TensorRT all read it.
OPSET = 18


def export_onnx(servable: Servable, card: ModelCard, path: Path) -> None:
    """Write `servable` to `path` with `card`, less its hashes and parity, inside. Raises BundleError.

    The card's outputs are those of `servable`, in its order.
    """
    model = _trace(servable, card.input_size, card.outputs)
    for node in model.graph.all_nodes():
        if node.op_type == "Resize":
            fix_scales(node)
    write_graph(model, card, path)


def write_graph(model: ir.Model, card: ModelCard, path: Path) -> None:
    """Write `model` to `path`, `card` inside and nothing else that is not computed. Raises what ONNX's checker does."""
    multiply_last_resize(model)
    model.metadata_props.clear()
    model.metadata_props["precision"] = "float32"
    model.metadata_props[CARD_KEY] = card.model_copy(update=WRITTEN_LATER).model_dump_json()
    save_graph(model, path)


def embedded_card(path: Path) -> ModelCard | None:
    """The card in the metadata of an ONNX file, without hashes and parity, or None where there is none."""
    model = onnx.load(str(path), load_external_data=False)
    texts = [entry.value for entry in model.metadata_props if entry.key == CARD_KEY]
    return ModelCard.parse(texts[0]) if texts else None


def _trace(servable: Servable, size: InputSize, outputs: tuple[str, ...]) -> ir.Model:
    # Two pictures, because a batch of one would be taken for a constant.
    images_nhwc = torch.zeros((2, size.height, size.width, 3), dtype=torch.uint8)
    program = torch.onnx.export(
        servable,
        (images_nhwc,),
        dynamo=True,
        input_names=[INPUT_NAME],
        output_names=list(outputs),
        dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("N", min=1)}},
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise BundleError("The exporter gave no graph.", "an ONNX program", "Install surgseg[export] again.")
    return program.model


def fix_scales(node: ir.Node) -> None:
    """Give a Resize constant scales instead of sizes computed from shapes at run time.

    Only then does ONNX Runtime keep the resize in the blocked layout of the convolutions around it.
    """
    source, target = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or target.shape is None:
        return
    before, after = source.shape[2:], target.shape[2:]
    if not all(isinstance(length, int) for length in (*before, *after)):
        return
    lengths = np.array([before, after], np.float32)
    scales = np.array([1, 1, *(lengths[1] / lengths[0])], np.float32)
    # A runtime works the size out from the scale again, so a scale that rounds must not cut off a row.
    if not np.array_equal(np.floor(lengths[0] * scales[2:]), lengths[1]):
        return
    constant = ir.Value(name=f"{target.name}_scales", const_value=ir.tensor(scales))
    assert node.graph is not None
    node.graph.register_initializer(constant)
    node.resize_inputs(3)
    node.replace_input_with(2, constant)
