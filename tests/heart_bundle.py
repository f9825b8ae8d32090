"""A bundle of several classes for grey pictures, whose masks a test knows for every pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from service.contract.bundle import (
    GOLDEN_CONFIDENCE,
    GOLDEN_IMAGE,
    GOLDEN_MASK,
    hash_file,
    required_files,
    save_card,
)
from service.contract.model_card import ClassInfo, InputSize, ModelCard

CLASSES = (
    ClassInfo(id=0, name="background", colour=(0, 0, 0)),
    ClassInfo(id=1, name="right_ventricle", colour=(60, 120, 230)),
    ClassInfo(id=2, name="myocardium", colour=(240, 180, 40)),
    ClassInfo(id=3, name="left_ventricle", colour=(215, 50, 80)),
)
SIZE = InputSize(height=128, width=128)
LEVELS_PER_CLASS = 64
MIDDLES = tuple(LEVELS_PER_CLASS * info.id + LEVELS_PER_CLASS // 2 for info in CLASSES)
"""The grey level in the middle of each class's range."""
_LOWEST = np.array([LEVELS_PER_CLASS * info.id - 0.5 for info in CLASSES[1:]])


def expected_classes(grey_hw: np.ndarray) -> np.ndarray:
    """The mask of a grey picture: 0 for the levels 0 to 63, 1 from 64, 2 from 128, 3 from 192."""
    return (grey_hw // LEVELS_PER_CLASS).astype(np.uint8)


def draw_heart(scale: int = 1) -> np.ndarray:
    """Grey levels `(128 * scale, 128 * scale)` of all four classes, one inside another, in blocks of 8 * scale."""
    small = np.full((16, 16), MIDDLES[0], np.uint8)
    small[4:12, 1:5] = MIDDLES[1]
    small[3:13, 5:15] = MIDDLES[2]
    small[6:10, 8:12] = MIDDLES[3]
    small[0:2, 14:16] = MIDDLES[3]
    return np.kron(small, np.ones((8 * scale, 8 * scale), np.uint8))


def write_heart_bundle(folder: Path, has_confidence: bool = False) -> None:
    """Write the bundle: a convolution by which the largest of four logits says which range a grey level is in."""
    (folder / "golden").mkdir(parents=True)
    card = ModelCard(
        name="heart-levels",
        version="1",
        description="Labels grey levels as parts of the heart; for tests.",
        classes=CLASSES,
        input_size=SIZE,
        intensities="levels of a slice from its darkest to its brightest",
        outputs=("mask", "confidence") if has_confidence else ("mask",),
        network="levels",
        method="none",
        parameters=0,
    )
    _write_graph(folder / "model.onnx", has_confidence)
    grey_hw = draw_heart()
    cv2.imwrite(str(folder / GOLDEN_IMAGE), grey_hw)
    cv2.imwrite(str(folder / GOLDEN_MASK), expected_classes(grey_hw))
    if has_confidence:
        cv2.imwrite(str(folder / GOLDEN_CONFIDENCE), expected_confidence(grey_hw))
    hashes = {name: hash_file(folder / name) for name in required_files(card)}
    save_card(card.model_copy(update={"files": hashes}), folder)


def expected_confidence(grey_hw: np.ndarray) -> np.ndarray:
    """255 times the softmax of the largest logit, uint8."""
    logits_chw = _slopes()[:, None, None] * grey_hw / 8 + _offsets()[:, None, None] / 8
    exponents_chw = np.exp(logits_chw - logits_chw.max(axis=0))
    return np.rint(255 * exponents_chw.max(axis=0) / exponents_chw.sum(axis=0)).astype(np.uint8)


def _slopes() -> np.ndarray:
    return np.arange(len(CLASSES), dtype=np.float64)


def _offsets() -> np.ndarray:
    """Each line meets the one before it at the lowest level of its class, so it is the largest from there on."""
    return -np.concatenate([[0.0], np.cumsum(_LOWEST)])


def _make_nodes(has_confidence: bool) -> list[Any]:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Transpose", ["image"], ["image_nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["image_nchw"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["normalised"]),
        helper.make_node("Conv", ["normalised", "weight", "bias"], ["logits"], name="classify"),
        helper.make_node("ArgMax", ["logits"], ["winner"], axis=1, keepdims=0),
        helper.make_node("Cast", ["winner"], ["winner_float"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["winner_float"], ["mask"], to=TensorProto.UINT8),
    ]
    if has_confidence:
        nodes += [
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ReduceMax", ["probabilities"], ["probability"], axes=[1], keepdims=0),
            helper.make_node("Mul", ["probability", "byte"], ["stretched"]),
            helper.make_node("Round", ["stretched"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["confidence"], to=TensorProto.UINT8),
        ]
    return nodes


def _write_graph(path: Path, has_confidence: bool) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = [SIZE.height, SIZE.width]
    outputs = ["mask", "confidence"] if has_confidence else ["mask"]
    # the offset of the normalisation is taken back by the bias, as a trained network's would be
    weight = np.repeat(_slopes()[:, None] / 3, 3, axis=1)[:, :, None, None]
    constants = {
        "scale": np.full((1, 3, 1, 1), 0.125),
        "offset": np.full((1, 3, 1, 1), -16.0),
        "weight": weight,
        "bias": _offsets() / 8 + 16.0 * _slopes(),
        "byte": np.array(255.0),
    }
    graph = helper.make_graph(
        _make_nodes(has_confidence),
        "levels",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *size, 3])],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", *size]) for name in outputs],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
