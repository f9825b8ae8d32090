"""Writes a bundle: whole, proven and hashed, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from model_export.bundle_folder import check_target, fill_unseen
from model_export.card import Description, draft_card
from model_export.parity import (
    Agreement,
    Predict,
    backend_predict,
    check_golden,
    measure_agreement,
    require_agreement,
)
from model_export.pictures import draw_pictures, draw_scan, fit_to_card
from model_export.reference import reference_predict
from model_export.servable import Servable
from model_export.to_onnx import export_onnx
from service.backends import open_backend
from service.contract.bundle import GOLDEN_IMAGE, Bundle, hash_file, open_bundle, required_files, save_card
from service.contract.geometry import Image
from service.contract.model_card import MODEL_NAME, ModelCard, Parity
from training.checkpoint import Checkpoint

BACKEND = "onnxruntime-cpu"
GOLDEN_CANDIDATES = 8


def write_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    description: Description,
    images: Iterable[Image],
    *,
    view: str | None = None,
    has_confidence: bool = False,
    golden_image_hwc: Image | None = None,
    replace: bool = False,
) -> tuple[Bundle, Agreement]:
    """Export `checkpoint` to `folder`, prove it on `images`, and only then let it be seen.

    `view` names the one of the method's views to export, None is what predicts. `images` are uint8 RGB of any size,
    fitted as the service does; so is `golden_image_hwc`, for which a drawn picture stands in. `replace` permits
    `folder` to be a bundle already. Raises BundleError, or DataError for a view that is not there, and then leaves
    `folder` as it was.
    """
    check_target(folder, replace)
    predictor = checkpoint.build_predictor(view)
    card = draft_card(checkpoint, predictor, description, view=view, has_confidence=has_confidence)
    predict = reference_predict(predictor, has_confidence)
    write_model = partial(export_onnx, Servable(predictor, has_confidence).eval(), card)
    return write_proven(
        folder, card, predict, write_model, images, golden_image_hwc=golden_image_hwc, replace=replace
    )


def write_proven(
    folder: Path,
    card: ModelCard,
    predict: Predict,
    write_model: Callable[[Path], None],
    images: Iterable[Image],
    *,
    golden_image_hwc: Image | None = None,
    replace: bool = False,
) -> tuple[Bundle, Agreement]:
    """Write the bundle of any network: what `write_model` writes to a path must label as `predict`, the network, does.

    `card` still has no hashes and no parity; the rest, and what is raised, is as in `write_bundle`.
    """
    check_target(folder, replace)
    fitted = (fit_to_card(image_hwc, card) for image_hwc in images)
    golden_hwc = (
        _draw_golden(predict, card) if golden_image_hwc is None else fit_to_card(golden_image_hwc, card)
    )
    with fill_unseen(folder, replace) as unseen:
        write_model(unseen / MODEL_NAME)
        card = _write_golden(unseen, card, golden_hwc, predict)
        agreement = _prove(unseen, card, predict, fitted)
    return open_bundle(folder), agreement


def describe_golden(bundle: Bundle) -> str:
    """A sentence on the classes that the golden mask does not show; empty where it shows them all."""
    shown = set(np.unique(bundle.golden_mask_hw).tolist())
    missing = [info.name for info in bundle.card.classes if info.id not in shown]
    if not missing:
        return ""
    return f"The golden mask shows no {', no '.join(missing)}: name a picture that has all classes with --golden."


def _draw_golden(predict: Predict, card: ModelCard) -> Image:
    """The drawn picture with most labels, of those the one whose rarest is the least rare: a mask of one label would
    prove little. Scans are drawn only where tissue and instruments do not show every class."""

    def richness(image_hwc: Image) -> tuple[int, int]:
        counts = np.bincount(predict(image_hwc[None])[0].ravel())
        present = counts[counts > 0]
        return len(present), int(present.min())

    size = card.input_size
    best_hwc = max(draw_pictures(size, GOLDEN_CANDIDATES), key=richness)
    if richness(best_hwc)[0] == len(card.classes):
        return best_hwc
    scans = (draw_scan(size, seed) for seed in range(GOLDEN_CANDIDATES))
    return max(best_hwc, *scans, key=richness)


def _write_golden(folder: Path, card: ModelCard, golden_hwc: Image, predict: Predict) -> ModelCard:
    """The golden pictures beside the model; gives the card with the hashes of all."""
    (folder / GOLDEN_IMAGE).parent.mkdir()
    golden_outputs = (output_nhw[0] for output_nhw in predict(golden_hwc[None]))
    pictures = (golden_hwc[:, :, ::-1], *golden_outputs)
    names = required_files(card)
    for name, picture in zip(names[1:], pictures, strict=True):
        if not cv2.imwrite(str(folder / name), picture):
            raise OSError(f"OpenCV could not write {name}")
    hashes = {name: hash_file(folder / name) for name in names}
    return card.model_copy(update={"files": hashes})


def _prove(folder: Path, card: ModelCard, predict: Predict, images: Iterable[Image]) -> Agreement:
    """Open the unseen bundle as the service will, compare, and save the card with what was measured."""
    save_card(card, folder)
    bundle = open_bundle(folder)
    backend = open_backend(BACKEND, bundle, precision="float32")
    try:
        served = backend_predict(backend, card)
        check_golden(bundle, served, backend.precision)
        agreement = measure_agreement(predict, served, images)
    finally:
        backend.close()
    require_agreement(agreement, backend.name, backend.precision)
    measured = Parity(
        backend=backend.name,
        precision=backend.precision,
        frames=agreement.frames,
        labels_equal=agreement.labels_equal,
        confidences_equal=agreement.confidences_equal,
    )
    save_card(card.model_copy(update={"parity": (measured,)}), folder)
    return agreement
