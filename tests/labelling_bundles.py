"""Real bundles whose model gives every pixel the same label, so that a mask says which model made it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper

from service.contract.bundle import (
    GOLDEN_IMAGE,
    GOLDEN_MASK,
    Bundle,
    hash_file,
    open_bundle,
    required_files,
    save_card,
)
from service.contract.model_card import ClassInfo, InputSize, ModelCard

HEIGHT, WIDTH = 64, 96
_SIDE, _PRODUCTS = 1500, 400


def write_labelling_bundle(
    folder: Path, label: int, *, golden: int | None = None, width: int = WIDTH, is_slow: bool = False
) -> Bundle:
    """A bundle with `label` + 2 classes, named after its label; gives it opened.

    `golden` is the label of its golden mask, the model's own unless it is to be wrong. `is_slow`: its graph holds a
    chain of constant products that a runtime computes while it opens the model, for about a minute.
    """
    (folder / "golden").mkdir(parents=True)
    onnx.save(_make_graph(label, width, _PRODUCTS if is_slow else 0), str(folder / "model.onnx"))
    cv2.imwrite(str(folder / GOLDEN_IMAGE), np.full((HEIGHT, width, 3), 99, np.uint8))
    mask_hw = np.full((HEIGHT, width), label if golden is None else golden, np.uint8)
    cv2.imwrite(str(folder / GOLDEN_MASK), mask_hw)
    card = ModelCard(
        name=f"label-{label}",
        version="1",
        description="Gives every pixel the same label; for tests.",
        classes=tuple(ClassInfo(id=id_, name=f"class {id_}", colour=(id_, 0, 0)) for id_ in range(label + 2)),
        input_size=InputSize(height=HEIGHT, width=width),
        network="constant",
        method="none",
        parameters=0,
    )
    hashes = {name: hash_file(folder / name) for name in required_files(card)}
    save_card(card.model_copy(update={"files": hashes}), folder)
    return open_bundle(folder)


def _make_graph(label: int, width: int, products: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["levels", "channels"], ["sums"], keepdims=0),
        helper.make_node("Mul", ["sums", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "label"], ["labels"]),
        *_make_products(products),
        helper.make_node("Add", ["labels", "nothing"], ["all"]),
        helper.make_node("Cast", ["all"], ["mask"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", HEIGHT, width, 3])],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", HEIGHT, width])],
        [
            helper.make_tensor("channels", TensorProto.INT64, [1], [3]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("label", TensorProto.FLOAT, [], [float(label)]),
            helper.make_tensor("side", TensorProto.INT64, [2], [_SIDE, _SIDE] if products else [1, 1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _make_products(count: int) -> list[onnx.NodeProto]:
    """Nodes that compute `nothing`, a zero, from constants."""
    chain = [
        helper.make_node("MatMul", [f"product-{index}", f"product-{index}"], [f"product-{index + 1}"])
        for index in range(count)
    ]
    filling = helper.make_tensor("filling", TensorProto.FLOAT, [1], [0.0])
    return [
        helper.make_node("ConstantOfShape", ["side"], ["product-0"], value=filling),
        *chain,
        helper.make_node("ReduceMean", [f"product-{count}"], ["nothing"], keepdims=0),
    ]
