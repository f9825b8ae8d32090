"""Proves that what will be served gives the labels, and the confidences, of the network itself. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.backends.base import Backend
from service.contract.bundle import Bundle
from service.contract.geometry import Image
from service.contract.model_card import CONFIDENCE_TOLERANCE, ModelCard, Precision
from service.errors import BundleError

Predict = Callable[[NDArray[np.uint8]], tuple[NDArray[np.uint8], ...]]
"""uint8 RGB `(N, H, W, 3)`, C-contiguous, to the outputs: uint8 class ids `(N, H, W)`, and perhaps their confidence."""

EQUAL_AT_LEAST: dict[Precision, float] = {
    "float32": 0.9999,
    "float16": 0.995,
    "bfloat16": 0.995,
    "int8": 0.995,
}
"""The share of labels that each precision must have in common with the network."""

CLOSE_AT_LEAST: dict[Precision, float] = {"float32": 0.9999, "float16": 0.995, "bfloat16": 0.98, "int8": 0.9}
"""The share of confidences that must be within CONFIDENCE_TOLERANCE levels. Rounding moves those of all pixels that the
network is unsure of, but the labels of those alone that lie between two classes."""

_COMPARE_RUNTIMES = "Compare the runtime's version and precision with those the network was trained with."
_EXPORT_AGAIN = "Export the bundle again on this machine, or check the runtime's version."


@dataclass(frozen=True)
class Agreement:
    """The share of labels that two predictions have in common, over all `frames` and on the worst.

    Of the confidences, None where there are none, the share that is within CONFIDENCE_TOLERANCE levels.
    """

    frames: int
    labels_equal: float
    worst: float
    confidences_equal: float | None = None

    def __str__(self) -> str:
        labels = (
            f"{self.labels_equal:.4%} of labels equal on {self.frames} frames (worst frame {self.worst:.4%})"
        )
        if self.confidences_equal is None:
            return labels
        return f"{labels}, {self.confidences_equal:.4%} of confidences within {CONFIDENCE_TOLERANCE} of 255"


def backend_predict(backend: Backend, card: ModelCard) -> Predict:
    """What a backend gives, for all outputs of the card that we know."""
    if card.has_confidence:
        return backend.segment_with_confidence
    return lambda images_nhwc: (backend.segment(images_nhwc),)


def run_graph(path: Path) -> Predict:
    """The graph in ONNX Runtime on the CPU as it is, also in a precision that this is no good for."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def predict(images_nhwc: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
        return tuple(session.run(None, {"image": images_nhwc}))

    return predict


def measure_agreement(
    reference: Predict, candidate: Predict, images: Iterable[Image], batch_size: int = 1
) -> Agreement:
    """Compare two predictions picture by picture; pictures are uint8 RGB `(H, W, 3)` at the model's size.

    Both are asked for whole batches; pictures that do not fill the last one are left out.
    """
    shares, close = [], []
    for images_nhwc in _batch(images, batch_size):
        (masks_nhw, *confidences), (other_masks_nhw, *others) = reference(images_nhwc), candidate(images_nhwc)
        shares += np.mean(masks_nhw == other_masks_nhw, axis=(1, 2)).tolist()
        for confidences_nhw, others_nhw in zip(confidences, others, strict=True):
            distances_nhw = np.abs(confidences_nhw.astype(np.int16) - others_nhw)
            close += np.mean(distances_nhw <= CONFIDENCE_TOLERANCE, axis=(1, 2)).tolist()
    if not shares:
        raise BundleError(
            "There was no picture to compare on.",
            "at least one frame",
            "Name data that holds frames, or a larger --limit.",
        )
    return Agreement(
        len(shares), float(np.mean(shares)), min(shares), float(np.mean(close)) if close else None
    )


def is_close(agreement: Agreement, precision: Precision) -> bool:
    """Whether as many labels are equal, and confidences close where there are some, as at that precision must be."""
    close = agreement.confidences_equal
    has_close = close is None or close >= CLOSE_AT_LEAST[precision]
    return agreement.labels_equal >= EQUAL_AT_LEAST[precision] and has_close


def require_agreement(
    agreement: Agreement, backend: str, precision: Precision, remedy: str = _COMPARE_RUNTIMES
) -> None:
    """Raise BundleError unless the agreement is close enough for that precision."""
    if not is_close(agreement, precision):
        raise BundleError(
            f"The backend {backend} in {precision} disagrees with the network: {agreement}.",
            f"at least {EQUAL_AT_LEAST[precision]:.2%} of labels and {CLOSE_AT_LEAST[precision]:.2%} of confidences",
            remedy,
        )


def check_golden(
    bundle: Bundle, predict: Predict, precision: Precision, remedy: str = _EXPORT_AGAIN
) -> Agreement:
    """Raise BundleError unless `predict` gives the golden mask, and confidence, for the golden picture."""
    pictures = (bundle.golden_mask_hw, bundle.golden_confidence_hw)
    golden = tuple(picture_hw[None] for picture_hw in pictures if picture_hw is not None)
    agreement = measure_agreement(lambda _: golden, predict, [bundle.golden_image_hwc])
    if not is_close(agreement, precision):
        raise BundleError(
            f"The golden picture of {bundle.folder} gives another mask: {agreement}.",
            "what it gave when it was exported",
            remedy,
        )
    return agreement


def _batch(images: Iterable[Image], size: int) -> Iterator[NDArray[np.uint8]]:
    waiting: list[Image] = []
    for image_hwc in images:
        waiting.append(image_hwc)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting.clear()
