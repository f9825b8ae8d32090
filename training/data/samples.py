"""One frame of a data set, and reading pictures and masks from disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from service.contract.geometry import Image, Mask
from service.errors import DataError

BACKGROUND, INSTRUMENT = 0, 1


@dataclass(frozen=True)
class Sample:
    """A frame that can be loaded when it is needed.

    `sample_id` is unique in its data set and starts with `video`, the operation or video it was taken from: splits
    never cut through a video. `load_mask` is None where the frame is unlabeled.
    """

    sample_id: str
    video: str
    load_image: Callable[[], Image]
    load_mask: Callable[[], Mask] | None = None

    def load(self) -> tuple[Image, Mask | None]:
        """RGB uint8 `(H, W, 3)` and class ids uint8 `(H, W)`, or None. Raises DataError naming the frame."""
        image_hwc = self.load_image()
        mask_hw = None if self.load_mask is None else self.load_mask()
        if mask_hw is not None and mask_hw.shape != image_hwc.shape[:2]:
            raise DataError(
                f"{self.sample_id}: the mask is {mask_hw.shape[1]} x {mask_hw.shape[0]}.",
                f"the picture's {image_hwc.shape[1]} x {image_hwc.shape[0]}",
                "Export the mask at the picture's size.",
            )
        return image_hwc, mask_hw


def read_image(path: Path) -> Image:
    """A picture file as RGB uint8 `(H, W, 3)`, orientation tags ignored as the service does."""
    image_bgr = _read(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.ascontiguousarray(image_bgr[:, :, ::-1])


def read_labels(path: Path) -> Mask:
    """A mask file's raw values, uint8 `(H, W)`; of a three-channel mask the first channel."""
    labels = _read(path, cv2.IMREAD_UNCHANGED)
    return np.ascontiguousarray(labels[:, :, 0] if labels.ndim == 3 else labels).astype(np.uint8)


def read_binary_mask(path: Path, known: tuple[int, ...]) -> Mask:
    """Instrument wherever the file is not 0. Raises DataError when it holds a value outside `known`."""
    labels = read_labels(path)
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    unknown = sorted(set(present) - set(known))
    if unknown:
        raise DataError(
            f"{path} holds the unknown values {unknown[:5]}.",
            f"only {sorted(known)}",
            "Check that this is the mask and that it was saved without compression loss.",
        )
    return (labels != BACKGROUND).astype(np.uint8)


def _read(path: Path, flags: int) -> np.ndarray:
    if not path.is_file():
        raise DataError(
            f"{path} is missing.", "a file for every frame", "Complete the data set, or drop the frame."
        )
    array = cv2.imread(str(path), flags)
    if array is None:
        raise DataError(f"{path} cannot be read as a picture.", "PNG or JPEG", "Fetch the file again.")
    return array
