"""OpenKBP: head-and-neck planning CT with the organs that radiotherapy spares, as one npz for each patient.

Layout: `pt_N.npz` with `image` uint16 `(slices, 128, 128)`, which is HU + 1024 and 0 outside the body, `label`,
`voxel_mm` (column, row, slice) and `slice_index`, the place of each slice: some are left out. Labels: 1 brainstem,
2 spinal cord, 3 right parotid, 4 left parotid.

Grey levels are HU from -160 to 240, a soft-tissue window. The head is 35 to 60 pixels wide, so a slice is cut to
96 x 96 round the middle of the volume's body: labels reach 29 pixels from there at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from service.errors import DataError
from training.data.hounsfield import apply_window, describe_window
from training.data.npz_volumes import IMAGE, LABEL, check_header, read_arrays
from training.data.samples import Sample
from training.data.volumes import Box, Stack, Volume, check_finite, check_labels, list_slices

CLASSES = 5
ZERO_HU = 1024
WINDOW_HU = (-160.0, 240.0)
SIDE = 96
VOXEL, INDEX = "voxel_mm", "slice_index"


def read(root: Path) -> Iterator[Sample | DataError]:
    """Every slice of every patient, patients in order of their numbers."""
    paths = [path for path in root.glob("pt_*.npz") if re.fullmatch(r"pt_[0-9]+", path.stem)]
    for path in sorted(paths, key=lambda path: int(path.stem[3:])):
        try:
            yield from list_slices(_open(path), is_labeled=True)
        except DataError as error:
            yield error


def describe_intensities() -> str:
    """What a picture must be for a network that learned from this reader."""
    return (
        f"an axial CT slice of head and neck: {describe_window(WINDOW_HU)}, outside the body 0, "
        f"cut to {SIDE} x {SIDE} pixels of 3.7 to 5.4 mm round the middle of the body"
    )


def _open(path: Path) -> Volume:
    shape = check_header(path, (VOXEL, INDEX))
    arrays = read_arrays(path, (VOXEL, INDEX))
    voxel_mm, indices = arrays[VOXEL].astype(float), arrays[INDEX]
    if voxel_mm.shape != (3,) or not (np.isfinite(voxel_mm) & (voxel_mm > 0)).all():
        raise DataError(f"{path}: voxel_mm is {voxel_mm.tolist()}.", "three sizes above 0", "Mend the file.")
    if indices.shape != shape[:1] or not (np.diff(indices.astype(np.int64)) > 0).all() or indices[0] < 0:
        raise DataError(
            f"{path}: slice_index has {indices.size} values, or they do not rise.",
            f"a rising number for each of the {shape[0]} slices",
            "Mend the file.",
        )
    first = int(indices[0])
    places = tuple(int(index) - first for index in indices)
    column, row, depth = (float(size) for size in voxel_mm)
    grid = (places[-1] + 1, *shape[1:])
    return Volume(f"{path.stem}/ct", grid, places, (depth, row, column), partial(_read, path))


def _read(path: Path) -> Stack:
    arrays = read_arrays(path, (IMAGE, LABEL))
    image = arrays[IMAGE]
    check_finite(image, path)
    body = np.argwhere((image > 0).any(axis=0))
    middle = (body.min(axis=0) + body.max(axis=0) + 1) // 2 if len(body) else np.array(image.shape[1:]) // 2
    box = Box(int(middle[0]) - SIDE // 2, int(middle[1]) - SIDE // 2, SIDE, SIDE)
    levels = apply_window(image.astype(np.float32) - ZERO_HU, WINDOW_HU)
    return Stack(levels, check_labels(arrays[LABEL], CLASSES, path), box)
