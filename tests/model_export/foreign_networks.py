"""Small networks as others would export them, and cards for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_export.foreign_card import ForeignCard
from service.contract.model_card import InputSize

SIZE = InputSize(height=96, width=160)
CARD = """\
name = "theirs"
version = "2"
description = "Labels by colour; for tests."
licence = "MIT"
classes = [{classes}]

[input]
{input}

[output]
{output}
"""
IMAGENET = 'size = { height = 96, width = 160 }\nchannels = "rgb"\nnormalise = "imagenet"'
LOGITS = 'kind = "logits"'
WEIGHTS = np.random.default_rng(3).normal(0, 1, (4, 3)).astype(np.float32)
"""Of each channel of the output, for red, green and blue, or in what order the network takes them."""


def write_card(path: Path, classes: int = 3, given: str = IMAGENET, output: str = LOGITS) -> Path:
    """A card with that many classes; `given` and `output` are what stands under [input] and [output]."""
    names = ", ".join(f'{{ name = "class {n}", colour = [{n}, 0, 0] }}' for n in range(classes))
    text = CARD.replace("{classes}", names).replace("{input}", given).replace("{output}", output)
    path.write_text(text, encoding="utf-8")
    return path


def load_card(folder: Path, classes: int = 3, given: str = IMAGENET, output: str = LOGITS) -> ForeignCard:
    return ForeignCard.load(write_card(folder / "card.toml", classes, given, output))


def write_foreign(
    path: Path,
    channels: int = 3,
    *,
    shape: tuple[int | str | None, ...] = ("batch", 3, "height", "width"),
    stride: int = 1,
    last: str = "",
    dtype: int = TensorProto.FLOAT,
    opset: int = 18,
    nodes: tuple[onnx.NodeProto, ...] = (),
    result: str = "scores",
) -> Path:
    """Scores `(N, channels, H / stride, W / stride)` that are sums of colours by WEIGHTS; `last` is an operator after.

    Its tensors have the names that the bundle's have, and `nodes` are added behind `scores`.
    """
    weights = WEIGHTS[:channels, :, None, None].astype(helper.tensor_dtype_to_np_dtype(dtype))
    chain = [
        helper.make_node(
            "AveragePool", ["image"], ["pooled"], kernel_shape=[stride] * 2, strides=[stride] * 2
        ),
        helper.make_node("Conv", ["pooled", "mask"], ["sums" if last else "scores"], name="/net/Conv"),
    ]
    if last:
        attributes = {"axis": 1} if last == "Softmax" else {}
        chain.append(
            helper.make_node(last, ["sums"], ["scores"], doc_string="made at /home/me", **attributes)
        )
    graph = helper.make_graph(
        [*chain, *nodes],
        "theirs",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [helper.make_tensor_value_info(result, dtype, None)],
        [numpy_helper.from_array(weights, "mask")],
        doc_string="in /home/me/theirs.py",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, {"source": "/home/me/theirs.py"})
    onnx.save(model, str(path))
    return path


def expect_scores(
    images_nhwc: np.ndarray, channels: int, mean: Any, std: Any, divide_by: float
) -> np.ndarray:
    """What such a network of stride 1 gives, `(N, H, W, channels)`, for colours in the order it takes them."""
    return ((images_nhwc / divide_by - np.array(mean)) / np.array(std)) @ WEIGHTS[:channels].T.astype(float)
