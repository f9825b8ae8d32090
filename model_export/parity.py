"""Proves that what will be served gives the labels of the network that was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.contract.geometry import Image
from service.errors import BundleError

Predict = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""uint8 RGB `(N, H, W, 3)`, C-contiguous, to uint8 class ids `(N, H, W)`."""

LABELS_EQUAL_AT_LEAST = 0.999


@dataclass(frozen=True)
class Agreement:
    """The share of labels that two predictions have in common, over all `frames` and on the worst."""

    frames: int
    labels_equal: float
    worst: float

    def __str__(self) -> str:
        return (
            f"{self.labels_equal:.4%} of labels equal on {self.frames} frames (worst frame {self.worst:.4%})"
        )


def reference_predict(predictor: nn.Module) -> Predict:
    """The labels of a network in torch, by the textbook and not by the exported form, which is under test."""
    mean, std = (
        torch.as_tensor(getattr(predictor, name)).float().view(1, 3, 1, 1) for name in ("mean", "std")
    )

    def predict(images_nhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            images_nchw = torch.from_numpy(images_nhwc).permute(0, 3, 1, 2).float() / 255
            logits_nchw = predictor((images_nchw - mean) / std)
            return np.asarray(logits_nchw.argmax(dim=1).numpy(), dtype=np.uint8)

    return predict


def measure_agreement(reference: Predict, candidate: Predict, images: Iterable[Image]) -> Agreement:
    """Compare two predictions picture by picture; pictures are uint8 RGB `(H, W, 3)` at the model's size."""
    shares = []
    for image_hwc in images:
        images_nhwc = np.ascontiguousarray(image_hwc)[None]
        shares.append(float(np.mean(reference(images_nhwc) == candidate(images_nhwc))))
    if not shares:
        raise BundleError(
            "There was no picture to compare on.",
            "at least one frame",
            "Name data that holds frames, or a larger --limit.",
        )
    return Agreement(len(shares), float(np.mean(shares)), min(shares))


def require_agreement(agreement: Agreement, backend: str) -> None:
    """Raise BundleError when fewer labels are equal than a bundle may differ by."""
    if agreement.labels_equal < LABELS_EQUAL_AT_LEAST:
        raise BundleError(
            f"The backend {backend} disagrees with the network: {agreement}.",
            f"at least {LABELS_EQUAL_AT_LEAST:.1%}",
            "Compare the runtime's version and precision with those the network was trained with.",
        )
