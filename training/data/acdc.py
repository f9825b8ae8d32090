"""ACDC: cardiac MRI of patients at end diastole and end systole, short-axis slices, three structures.

Two layouts. The challenge's own: `patientNNN/patientNNN_frameMM.nii.gz` with `_gt.nii.gz` and `Info.cfg`; its `_4d`
files are left out. And one npz for each volume, `patientNNN_frameMM.npz`, with `image` and `label`; it has no spacing.
Axes are taken as they are stored, as is usual with this set. Labels: 1 right ventricle, 2 myocardium, 3 left ventricle.

A slice is divided by its own maximum and cut to a square round its middle, of five eighths of its longer side: no
labeled voxel of the first 40 patients lies outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from service.errors import DataError
from training.data.nifti_volumes import check_same_place, list_nifti, read_header, read_values, stem_of
from training.data.npz_volumes import IMAGE, LABEL, check_header, read_arrays
from training.data.samples import Sample
from training.data.volumes import Levels, Stack, Volume, centre_box, check_finite, check_labels, list_slices

CLASSES = 4
CROP = 5 / 8
_NAME = re.compile(r"(patient\d+)_(frame\d+)")


def read(root: Path) -> Iterator[Sample | DataError]:
    """Every slice of every volume, in order of patient and frame."""
    volumes = [path for path in sorted(root.glob("patient*.npz")) if not path.name.startswith(".")]
    for folder in sorted(path for path in root.glob("patient*") if path.is_dir()):
        frames = [path for path in list_nifti(folder, "*_frame*") if not stem_of(path).endswith("_gt")]
        yield from _lacking_frames(folder, {stem_of(path) for path in frames})
        volumes += frames
    for path in volumes:
        try:
            volume = _open_npz(path) if path.suffix == ".npz" else _open_nifti(path)
        except DataError as error:
            yield error
        else:
            yield from list_slices(volume, is_labeled=True)


def describe_intensities() -> str:
    """What a picture must be for a network that learned from this reader."""
    return (
        "a short-axis cardiac MRI slice: 8-bit grey, the slice's maximum at 255, cut to a square round the middle of "
        "five eighths of the longer side"
    )


def _name(path: Path, stem: str) -> str:
    match = _NAME.fullmatch(stem)
    if match is None:
        raise DataError(f"{path} is no name of ACDC.", "patientNNN_frameMM", "Rename or remove the file.")
    return f"{match[1]}/{match[2]}"


def _open_npz(path: Path) -> Volume:
    shape = check_header(path)
    return Volume(_name(path, path.stem), shape, tuple(range(shape[0])), None, partial(_read_npz, path))


def _open_nifti(path: Path) -> Volume:
    name = _name(path, stem_of(path))
    label = _label_of(path)
    if not label.is_file():
        raise DataError(f"{path} has no labels.", f"{label.name} beside it", "Add it, or remove the volume.")
    header = read_header(path, anatomical=False)
    check_same_place(header, read_header(label, anatomical=False), anatomical=False)
    indices = tuple(range(header.shape[0]))
    return Volume(name, header.shape, indices, header.spacing_mm, partial(_read_nifti, path))


def _label_of(path: Path) -> Path:
    stem = stem_of(path)
    return path.with_name(path.name.replace(stem, f"{stem}_gt", 1))


def _read_npz(path: Path) -> Stack:
    arrays = read_arrays(path, (IMAGE, LABEL))
    return _prepare(arrays[IMAGE], arrays[LABEL], path, path)


def _read_nifti(path: Path) -> Stack:
    label = _label_of(path)
    values = read_values(path, anatomical=False)
    return _prepare(values, read_values(label, anatomical=False), path, label)


def _prepare(values: np.ndarray, labels: np.ndarray, path: Path, label_path: Path) -> Stack:
    check_finite(values, path)
    box = centre_box(*values.shape[1:], side=round(max(values.shape[1:]) * CROP))
    return Stack(_scale_slices(values), check_labels(labels, CLASSES, label_path), box)


def _scale_slices(values_shw: np.ndarray) -> Levels:
    """Every slice from 0 to its own maximum as 0 to 255."""
    values = values_shw.astype(np.float32).clip(0)
    top = values.max(axis=(1, 2), keepdims=True)
    return (values * (255 / np.where(top > 0, top, 1))).round().astype(np.uint8)


def _lacking_frames(folder: Path, stems: set[str]) -> Iterator[DataError]:
    """What Info.cfg names and is not there: end diastole (ED) and end systole (ES)."""
    path = folder / "Info.cfg"
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    frames = dict(re.findall(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", text, re.MULTILINE))
    if set(frames) != {"ED", "ES"}:
        yield DataError(f"{path} does not name both frames.", "lines ED: N and ES: N", "Fetch it again.")
        return
    for phase, number in frames.items():
        name = f"{folder.name}_frame{int(number):02d}"
        if name not in stems:
            yield DataError(
                f"{path} names {phase} {number}, and there is no {name}.", "both", "Fetch it again."
            )
