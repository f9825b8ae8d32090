"""Medical volumes as samples: a slice is a frame, a patient a video, and every slice knows its place in its volume.

A volume is read whole, prepared (grey levels to uint8) and cut to a box; networks see slices of that box, and
training.volume_scores puts their masks back on the volume's own grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract.geometry import Image, Mask
from service.errors import DataError
from training.data.samples import Sample, SlicePlace

Levels = NDArray[np.uint8]


@dataclass(frozen=True)
class Box:
    """Rows `top : top + height` and columns `left : left + width` of a slice; may reach beyond it."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Stack:
    """The contents of a volume: grey levels and class ids, uint8 `(slices, rows, columns)`, and the box to look at.

    `labels_shw` is None where the volume is unlabeled.
    """

    images_shw: Levels
    labels_shw: Levels | None
    box: Box


@dataclass(frozen=True)
class Volume:
    """A volume on disk. `volume_id` is `patient/name`.

    `indices` are the places of its slices in the grid, whose `shape` is (slices, rows, columns): slices that were left
    out of the file are in the grid, empty. `spacing_mm` is in the same order, None where the file does not say.
    `read` raises DataError naming the file; `stack` is what it gave, remembered for the last volumes asked for.
    """

    volume_id: str
    shape: tuple[int, int, int]
    indices: tuple[int, ...]
    spacing_mm: tuple[float, float, float] | None
    read: Callable[[], Stack]

    @property
    def patient(self) -> str:
        return self.volume_id.rpartition("/")[0]

    @property
    def stack(self) -> Stack:
        stack = _read_once(self.read)
        if isinstance(stack, DataError):
            raise DataError(stack.found, stack.expected, stack.remedy)
        return stack

    def load_labels(self) -> Levels:
        """Class ids uint8 on the whole grid, not only in the box. Raises DataError when the volume is unlabeled."""
        labels_shw = self.stack.labels_shw
        if labels_shw is None:
            raise DataError(f"{self.volume_id} is unlabeled.", "a volume with labels", "Add its labels.")
        grid_shw = np.zeros(self.shape, np.uint8)
        grid_shw[list(self.indices)] = labels_shw
        return grid_shw

    def restore(self, masks: Sequence[Mask]) -> Levels:
        """One mask of the box for each slice, in order, on the whole grid; 0 outside the box."""
        box = self.stack.box
        grid_shw = np.zeros(self.shape, np.uint8)
        top, left = max(box.top, 0), max(box.left, 0)
        bottom = min(box.top + box.height, self.shape[1])
        right = min(box.left + box.width, self.shape[2])
        for index, mask_hw in zip(self.indices, masks, strict=True):
            inside = mask_hw[top - box.top : bottom - box.top, left - box.left : right - box.left]
            grid_shw[index, top:bottom, left:right] = inside
        return grid_shw


@lru_cache(maxsize=2)
def _read_once(read: Callable[[], Stack]) -> Stack | DataError:
    """Slices are asked for in order, one by one; what cannot be read is not tried again for each."""
    try:
        return read()
    except DataError as error:
        return error


def list_slices(volume: Volume, is_labeled: bool) -> Iterator[Sample]:
    """The samples of a volume, in order: RGB uint8 with three equal channels, ids `patient/name_NNN`."""
    for position, index in enumerate(volume.indices):
        yield Sample(
            sample_id=f"{volume.volume_id}_{index:03d}",
            video=volume.patient,
            load_image=partial(_load_image, volume, position),
            load_mask=partial(_load_mask, volume, position) if is_labeled else None,
            place=SlicePlace(volume, position),
        )


def centre_box(rows: int, columns: int, side: int) -> Box:
    """A square of `side` pixels round the middle of a slice."""
    return Box((rows - side) // 2, (columns - side) // 2, side, side)


def check_labels(labels: np.ndarray, classes: int, path: Path) -> Levels:
    """Labels as uint8. Raises DataError for values that are not the ids of `classes` declared classes."""
    present = np.unique(labels)
    unknown = present[~np.isin(present, np.arange(classes))]
    if len(unknown):
        listed = ", ".join(f"{value:g}" for value in unknown[:5])
        raise DataError(
            f"{path} holds the undeclared classes {listed}.",
            f"only 0 to {classes - 1}",
            "Check that these are the labels, and how many classes the reader was told of.",
        )
    return labels.astype(np.uint8)


def check_finite(values: np.ndarray, path: Path) -> None:
    """Raises DataError when a value is NaN or infinite."""
    count = values.size - int(np.isfinite(values).sum())
    if count:
        raise DataError(
            f"{path} holds {count} values that are NaN or infinite.",
            "finite values",
            "Export the volume again.",
        )


def check_same_grid(shape: Sequence[int], label_shape: Sequence[int], path: Path) -> None:
    """Raises DataError when labels are not of their volume's shape."""
    if tuple(shape) != tuple(label_shape):
        raise DataError(
            f"{path}: the labels are {_times(label_shape)} voxels.",
            f"the volume's {_times(shape)}",
            "Export the labels on the volume's grid.",
        )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _load_image(volume: Volume, position: int) -> Image:
    stack = volume.stack
    levels_hw = _cut(stack.images_shw[position], stack.box)
    return np.repeat(levels_hw[:, :, None], 3, axis=2)


def _load_mask(volume: Volume, position: int) -> Mask:
    stack = volume.stack
    assert stack.labels_shw is not None
    return _cut(stack.labels_shw[position], stack.box)


def _cut(array_hw: Levels, box: Box) -> Levels:
    """The box of a slice, a copy; 0 where the box reaches beyond it."""
    cut_hw = np.zeros((box.height, box.width), np.uint8)
    top, left = max(box.top, 0), max(box.left, 0)
    inside = array_hw[top : box.top + box.height, left : box.left + box.width]
    row, column = top - box.top, left - box.left
    cut_hw[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return cut_hw
