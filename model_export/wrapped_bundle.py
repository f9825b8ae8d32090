"""Turns a network that was trained elsewhere into a bundle, proven against the network as it came."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from model_export.bundle import write_proven
from model_export.bundle_folder import check_target
from model_export.foreign_card import ForeignCard
from model_export.foreign_graph import Form, count_numbers, wrap_graph
from model_export.foreign_model import ForeignModel, open_foreign
from model_export.foreign_reference import ForeignReference
from model_export.parity import EQUAL_AT_LEAST, Agreement
from model_export.pictures import draw_pictures
from model_export.to_onnx import INPUT_NAME, write_graph
from service.backends.base import first_line
from service.contract.bundle import Bundle
from service.contract.geometry import Image
from service.contract.model_card import MASK, InputSize, ModelCard
from service.errors import BundleError

_SMALLEST, _LARGEST = 32, 4096


def wrap_model(
    path: Path,
    card: ForeignCard,
    folder: Path,
    images: Iterable[Image],
    *,
    has_confidence: bool = False,
    golden_image_hwc: Image | None = None,
    replace: bool = False,
) -> tuple[Bundle, Agreement, tuple[str, ...]]:
    """Write the bundle of the ONNX file at `path`; gives it, its parity, and notes on what was changed.

    `images` and the rest are as in `write_bundle`. Raises BundleError, and then leaves `folder` as it was.
    """
    check_target(folder, replace)
    model = open_foreign(path, card.output.name)
    size = _choose_size(model, card.input.size)
    reference = ForeignReference(model, card, size, has_confidence)
    form = Form(reference.channels, reference.height, reference.width)
    drafted = card.draft(size, count_numbers(model), has_confidence)
    notes = list(model.notes)
    if model.batch is not None:
        notes.append(f"opened the batch, which was fixed at {model.batch}")
    if (form.height, form.width) != (size.height, size.width):
        notes.append(f"enlarged the output of {form.width} x {form.height}")
    bundle, agreement = write_proven(
        folder,
        drafted,
        reference.predict,
        partial(_write_graph, model, card, form, drafted),
        images,
        golden_image_hwc=golden_image_hwc,
        replace=replace,
    )
    return bundle, agreement, tuple(notes)


def _choose_size(model: ForeignModel, asked: InputSize | None) -> InputSize:
    """The canvas: what the model takes, or what the card says where it takes any."""
    height = model.height or (asked.height if asked else None)
    width = model.width or (asked.width if asked else None)
    if height is None or width is None:
        raise BundleError(
            f"{model.path} takes pictures of any size.", "one size", "Set input.size in the card."
        )
    if asked is not None and (asked.height, asked.width) != (height, width):
        raise BundleError(
            f"{model.path} takes pictures of {width} x {height}, the card says {asked.width} x {asked.height}.",
            "the same in both",
            "Correct input.size in the card, or export the model for that size.",
        )
    if not all(_SMALLEST <= length <= _LARGEST for length in (height, width)):
        raise BundleError(
            f"{model.path} takes pictures of {width} x {height}.",
            f"{_SMALLEST} to {_LARGEST} pixels",
            "Export the model for such a size.",
        )
    return InputSize(height=height, width=width)


def _write_graph(model: ForeignModel, card: ForeignCard, form: Form, drafted: ModelCard, path: Path) -> None:
    """The wrapped graph, checked by ONNX and run on batches of one and two. Raises BundleError."""
    wrapped = wrap_graph(model, card, drafted.input_size, form, drafted.has_confidence)
    try:
        write_graph(wrapped, drafted, path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(
            f"{model.path} is not valid ONNX: {first_line(error)}.",
            "a model that ONNX's own checker accepts",
            "Export it again with a dynamic batch and opset 18.",
        ) from error
    _require_independence(model, drafted.input_size, path)


def _require_independence(model: ForeignModel, size: InputSize, path: Path) -> None:
    """Raise BundleError unless a picture has the same mask alone and beside another."""
    images_nhwc = np.stack(list(draw_pictures(size, 2)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        batches = (images_nhwc[:1], images_nhwc[1:], images_nhwc)
        first, second, both = (session.run([MASK], {INPUT_NAME: batch})[0] for batch in batches)
    except Exception as error:
        raise BundleError(
            f"{model.path} does not run on two pictures at once: {first_line(error)}.",
            "a batch of any size",
            "Export it again with a dynamic batch: somewhere inside it is fixed (docs/wrap.md).",
        ) from error
    alone = np.concatenate([first, second])
    if both.shape != alone.shape or np.mean(both == alone) < EQUAL_AT_LEAST["float32"]:
        raise BundleError(
            f"{model.path} gives a picture another mask when it comes beside another.",
            "masks that do not depend on the batch",
            "Export it in eval mode and with a dynamic batch (docs/wrap.md).",
        )
