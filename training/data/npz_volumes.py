"""Reading volumes that are arrays of an npz file: `image` and `label`, `(slices, rows, columns)`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import DataError
from training.data.volumes import check_same_grid

IMAGE, LABEL = "image", "label"
_UNREADABLE = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError)


def check_header(path: Path, extra: tuple[str, ...] = ()) -> tuple[int, int, int]:
    """The volume's shape, from the headers alone. Raises DataError where an array is missing or of a wrong shape.

    `extra` are further arrays that the file must hold.
    """
    shapes = _read_shapes(path)
    for name in (IMAGE, LABEL, *extra):
        if name not in shapes:
            found = f"{path} has no labels." if name == LABEL else f"{path} has no array {name!r}."
            raise DataError(
                found, f"the arrays {', '.join((IMAGE, LABEL, *extra))}", "Add it, or remove the file."
            )
    shape = shapes[IMAGE]
    if len(shape) != 3 or 0 in shape:
        raise DataError(
            f"{path}: the image has the shape {shape}.", "(slices, rows, columns)", "Export the volume again."
        )
    check_same_grid(shape, shapes[LABEL], path)
    return shape[0], shape[1], shape[2]


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """These arrays of the file. Raises DataError when they cannot be read or hold other than numbers."""
    try:
        with np.load(path) as arrays:
            values = {name: arrays[name] for name in names}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    for name, array in values.items():
        if array.dtype.kind not in "biuf":
            raise DataError(
                f"{path}: {name} holds {array.dtype}.", "integers or floats", "Export the volume again."
            )
    return values


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _read_shape(archive, name) for name in names}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _read_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as file:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        read_header: Any = (
            np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        )
        shape: tuple[int, ...] = read_header(file)[0]
        return shape


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [error.__class__.__name__])[0]
    return DataError(
        f"{path} cannot be read: it is truncated, damaged or of another kind ({reason}).",
        "a whole npz file",
        "Fetch the file again.",
    )
