"""Reading volumes and their labels from NIfTI files, by nibabel."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from service.errors import DataError
from training.data.volumes import check_finite, check_same_grid

SUFFIXES = (".nii.gz", ".nii")
# What counts as equal spacing and place: headers keep 32-bit floats, and tools round them.
RELATIVE_TOLERANCE = 1e-3
PLACE_TOLERANCE_MM = 0.1
_UNREADABLE = (ImageFileError, HeaderDataError, zlib.error, OSError, EOFError, ValueError)


@dataclass(frozen=True)
class NiftiHeader:
    """A file's shape (slices, rows, columns), its spacing in mm in the same order, and where it lies in the scanner."""

    path: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray


def stem_of(path: Path) -> str:
    """The file's name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def list_nifti(folder: Path, pattern: str = "*") -> list[Path]:
    """NIfTI files of a folder, in order of their names, hidden ones left out."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.name.endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()
    )


def read_header(path: Path, anatomical: bool) -> NiftiHeader:
    """The header alone. Raises DataError when it cannot be read, is not of a volume, or states no spacing.

    `anatomical` turns the volume as `read_values` does.
    """
    image = _open(path, anatomical)
    shape = _drop_ones(image.shape)
    spacing = tuple(float(size) for size in image.header.get_zooms()[:3])
    if len(shape) != 3 or 0 in shape:
        raise DataError(
            f"{path} has the shape {image.shape}.", "three dimensions", "Export one volume for each file."
        )
    if not all(np.isfinite(size) and size > 0 for size in spacing):
        raise DataError(
            f"{path} states the spacing {format_spacing(spacing)}.", "sizes above 0", "Mend its header."
        )
    return NiftiHeader(path, shape[::-1], spacing[::-1], image.affine)


def check_same_place(image: NiftiHeader, label: NiftiHeader, anatomical: bool) -> None:
    """Raises DataError when labels differ from their volume in shape or spacing or, if `anatomical`, in place."""
    check_same_grid(image.shape, label.shape, label.path)
    if not np.allclose(image.spacing_mm, label.spacing_mm, rtol=RELATIVE_TOLERANCE, atol=0):
        raise DataError(
            f"{label.path} has the spacing {format_spacing(label.spacing_mm[::-1])}.",
            f"the volume's {format_spacing(image.spacing_mm[::-1])}",
            "Export the labels on the volume's grid.",
        )
    corner = (*(size - 1 for size in image.shape[::-1]), 1)
    ends = [(header.affine @ place)[:3] for header in (image, label) for place in ((0, 0, 0, 1), corner)]
    if anatomical and not np.allclose(ends[:2], ends[2:], atol=PLACE_TOLERANCE_MM):
        raise DataError(
            f"{label.path} lies elsewhere in the scanner than {image.path.name}.",
            "the same place and directions",
            "Export the labels on the volume's grid.",
        )


def read_values(path: Path, anatomical: bool) -> np.ndarray:
    """The values as float32 `(slices, rows, columns)`, scaled as the header says. Raises DataError.

    `anatomical` turns the volume so that slices go from feet to head, rows from front to back and columns from the
    patient's right to the left, as radiologists look at it; else the axes are taken as they are stored.
    """
    image = _open(path, anatomical)
    try:
        values = np.asarray(image.dataobj, dtype=np.float32)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    check_finite(values, path)
    return np.ascontiguousarray(values.reshape(_drop_ones(values.shape)).T)


def format_spacing(spacing_mm: Sequence[float]) -> str:
    """Sizes in the order given, for a message."""
    return " x ".join(f"{size:.4g}" for size in spacing_mm) + " mm"


def _open(path: Path, anatomical: bool) -> Any:
    try:
        image: Any = nibabel.load(path)
        if anatomical:
            wanted = axcodes2ornt(("L", "P", "S"))
            image = image.as_reoriented(ornt_transform(io_orientation(image.affine), wanted))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return image


def _drop_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the axes of length 1 behind the third, that some tools write."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [error.__class__.__name__])[0]
    return DataError(
        f"{path} cannot be read: it is truncated, damaged or of another kind ({reason}).",
        "a whole NIfTI file",
        "Fetch the file again.",
    )
