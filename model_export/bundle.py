"""Writes a bundle: whole, proven and hashed, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from model_export.card import Description, draft_card
from model_export.parity import (
    LABELS_EQUAL_AT_LEAST,
    Agreement,
    Predict,
    measure_agreement,
    reference_predict,
    require_agreement,
)
from model_export.pictures import draw_pictures
from model_export.servable import Servable
from model_export.to_onnx import export_onnx
from service.backends import open_backend
from service.contract.bundle import GOLDEN_IMAGE, GOLDEN_MASK, MODEL_NAME, Bundle, hash_file, open_bundle
from service.contract.geometry import Image, Mask, fit_image, plan_fit
from service.contract.model_card import CARD_NAME, InputSize, ModelCard, Parity
from service.errors import BundleError
from training.checkpoint import Checkpoint

BACKEND = "onnxruntime"
GOLDEN_CANDIDATES = 8


def write_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    description: Description,
    images: Iterable[Image],
    *,
    golden_image_hwc: Image | None = None,
    replace: bool = False,
) -> tuple[Bundle, Agreement]:
    """Export `checkpoint` to `folder`, prove it on `images`, and only then let it be seen.

    `images` are uint8 RGB of any size, fitted as the service does; so is `golden_image_hwc`, for which a
    drawn picture stands in. `replace` permits `folder` to be a bundle already. Raises BundleError, and then
    leaves `folder` as it was.
    """
    _check_target(folder, replace)
    predictor = checkpoint.build_predictor().eval()
    card = draft_card(checkpoint, predictor, description)
    predict = reference_predict(predictor)
    fitted = (fit_to_card(image_hwc, card) for image_hwc in images)
    golden_hwc = (
        _draw_golden(predict, card.input_size)
        if golden_image_hwc is None
        else fit_to_card(golden_image_hwc, card)
    )
    try:
        with _unseen(folder, replace) as partial:
            card = _write_files(partial, predictor, card, golden_hwc, predict(golden_hwc[None])[0])
            agreement = _prove(partial, card, predict, fitted)
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be written ({error.strerror or error}).",
            "a folder to write to",
            "Choose another --out.",
        ) from error
    return open_bundle(folder), agreement


def fit_to_card(image_hwc: Image, card: ModelCard) -> Image:
    """A picture of any size on the canvas of the card's model, exactly as the service fits it."""
    fit = plan_fit(image_hwc.shape[0], image_hwc.shape[1], card.input_size, card.fit)
    return np.ascontiguousarray(fit_image(image_hwc, fit))


def _draw_golden(predict: Predict, size: InputSize) -> Image:
    """The drawn picture whose rarest label is the least rare: a mask of one label would prove little."""

    def rarest(image_hwc: Image) -> tuple[int, int]:
        counts = np.bincount(predict(image_hwc[None]).ravel())
        present = counts[counts > 0]
        return len(present), int(present.min())

    return max(draw_pictures(size, GOLDEN_CANDIDATES), key=rarest)


def _write_files(
    folder: Path, predictor: nn.Module, card: ModelCard, golden_hwc: Image, mask_hw: Mask
) -> ModelCard:
    """Model and golden pair; gives the card with their hashes."""
    export_onnx(Servable(predictor).eval(), card, folder / MODEL_NAME)
    (folder / GOLDEN_IMAGE).parent.mkdir()
    for name, picture in ((GOLDEN_IMAGE, golden_hwc[:, :, ::-1]), (GOLDEN_MASK, mask_hw)):
        if not cv2.imwrite(str(folder / name), picture):
            raise OSError(f"OpenCV could not write {name}")
    hashes = {name: hash_file(folder / name) for name in (MODEL_NAME, GOLDEN_IMAGE, GOLDEN_MASK)}
    return card.model_copy(update={"files": hashes})


def _prove(folder: Path, card: ModelCard, predict: Predict, images: Iterable[Image]) -> Agreement:
    """Open the unseen bundle as the service will, compare, and save the card with what was measured."""
    card.save(folder / CARD_NAME)
    bundle = open_bundle(folder)
    backend = open_backend(BACKEND, bundle)
    try:
        check_golden(bundle, backend.segment)
        agreement = measure_agreement(predict, backend.segment, images)
    finally:
        backend.close()
    require_agreement(agreement, backend.name)
    measured = Parity(
        backend=backend.name,
        precision=backend.precision,
        frames=agreement.frames,
        labels_equal=agreement.labels_equal,
    )
    card.model_copy(update={"parity": (measured,)}).save(folder / CARD_NAME)
    return agreement


def check_golden(bundle: Bundle, predict: Predict) -> Agreement:
    """Raise BundleError unless `predict` gives the golden mask for the golden picture."""
    golden_mask_hw = bundle.golden_mask_hw
    agreement = measure_agreement(lambda _: golden_mask_hw[None], predict, [bundle.golden_image_hwc])
    if agreement.labels_equal < LABELS_EQUAL_AT_LEAST:
        raise BundleError(
            f"The golden picture of {bundle.folder} gives another mask: {agreement}.",
            "the mask it gave when it was exported",
            "Export the bundle again on this machine, or check the runtime's version.",
        )
    return agreement


def _check_target(folder: Path, replace: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CARD_NAME).is_file():
        raise BundleError(f"{folder} exists and is not a bundle.", "a new folder", "Choose another --out.")
    if not replace:
        raise BundleError(
            f"There is a bundle at {folder}.", "a new folder", "Choose another --out, or add --force."
        )


@contextmanager
def _unseen(folder: Path, replace: bool) -> Iterator[Path]:
    """A hidden sibling to fill; it becomes `folder` when the block ends well and vanishes when it does not.

    When a bundle is replaced there is an instant with none, but never a half-written one.
    """
    token = secrets.token_hex(4)
    partial = folder.parent / f".{folder.name}.{token}.partial"
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush(partial)
        if replace and folder.exists():
            previous = folder.parent / f".{folder.name}.{token}.previous"
            folder.rename(previous)
            try:
                partial.rename(folder)
            except OSError:
                previous.rename(folder)
                raise
            shutil.rmtree(previous)
        else:
            partial.rename(folder)
        _flush_entry(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring every file and folder entry to the disk before the name appears."""
    for path in [*folder.rglob("*"), folder]:
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
