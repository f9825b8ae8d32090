"""One frame of a data set, and reading pictures and masks from disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from service.contract.geometry import Image, Mask
from service.errors import DataError

if TYPE_CHECKING:
    from training.data.volumes import Volume

BACKGROUND, INSTRUMENT = 0, 1


@dataclass(frozen=True)
class SlicePlace:
    """Which slice of a volume a frame is: the `position`-th that the volume has."""

    volume: Volume
    position: int


@dataclass(frozen=True)
class Sample:
    """A frame that can be loaded when it is needed.

    `sample_id` is unique in its data set and starts with `video`, the operation or video it was taken from: splits
    never cut through a video. `load_mask` is None where the frame is unlabeled, `place` where it is of no volume.
    """

    sample_id: str
    video: str
    load_image: Callable[[], Image]
    load_mask: Callable[[], Mask] | None = None
    place: SlicePlace | None = None

    def load(self) -> tuple[Image, Mask | None]:
        """RGB uint8 `(H, W, 3)` and class ids uint8 `(H, W)`, or None. Raises DataError naming the frame."""
        image_hwc = self.load_image()
        mask_hw = None if self.load_mask is None else self.load_mask()
        if mask_hw is not None:
            check_same_size(self.sample_id, image_hwc, mask_hw)
        return image_hwc, mask_hw


def check_same_size(sample_id: str, image_hwc: Image, mask_hw: Mask) -> None:
    """Raises DataError naming the frame when its mask is not of its picture's size."""
    if mask_hw.shape != image_hwc.shape[:2]:
        raise DataError(
            f"{sample_id}: the mask is {mask_hw.shape[1]} x {mask_hw.shape[0]}.",
            f"the picture's {image_hwc.shape[1]} x {image_hwc.shape[0]}",
            "Export the mask at the picture's size.",
        )


def read_image(path: Path) -> Image:
    """A picture file as RGB uint8 `(H, W, 3)`, orientation tags ignored as the service does."""
    image_bgr = _read(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.ascontiguousarray(image_bgr[:, :, ::-1])


def read_labels(path: Path) -> Mask:
    """A mask file's raw values, uint8 `(H, W)`. Raises DataError for colours or values above 255.

    A mask saved with three channels is gray: a coloured one means a palette, whose values are not class ids.
    """
    labels = _read(path, cv2.IMREAD_UNCHANGED)
    if labels.ndim == 3:
        if not (labels[:, :, :1] == labels[:, :, 1:3]).all():
            raise DataError(
                f"{path} is a coloured mask.",
                "one value a pixel",
                "Save it with one channel, without a palette.",
            )
        labels = labels[:, :, 0]
    if labels.dtype != np.uint8 and labels.max() > 255:
        raise DataError(
            f"{path} holds values up to {labels.max()}.", "8-bit values", "Save the mask with 8 bits a pixel."
        )
    return np.ascontiguousarray(labels, dtype=np.uint8)


def read_classes(path: Path, class_of: Mapping[int, int]) -> Mask:
    """A mask file's values as class ids, uint8 `(H, W)`. Raises DataError for a value that `class_of` lacks."""
    labels = read_labels(path)
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    unknown = sorted(set(present) - set(class_of))
    if unknown:
        raise DataError(
            f"{path} holds the unknown values {unknown[:5]}.",
            f"only {sorted(class_of)}",
            "Check that this is the mask and that it was saved without compression loss.",
        )
    table = np.zeros(256, np.uint8)
    table[list(class_of)] = list(class_of.values())
    return table[labels]


def read_binary_mask(path: Path, known: tuple[int, ...]) -> Mask:
    """Instrument wherever the file is not 0. Raises DataError when it holds a value outside `known`."""
    return read_classes(path, {value: BACKGROUND if value == 0 else INSTRUMENT for value in known})


def _read(path: Path, flags: int) -> np.ndarray:
    if not path.is_file():
        raise DataError(
            f"{path} is missing.", "a file for every frame", "Complete the data set, or drop the frame."
        )
    try:
        # imdecode refuses a truncated JPEG; imread would give its upper half and gray below
        array = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flags)
    except (cv2.error, OSError):
        array = None
    if array is None:
        raise DataError(
            f"{path} cannot be read as a picture: it is truncated, damaged or of another kind.",
            "a whole PNG or JPEG",
            "Fetch the file again.",
        )
    return array
