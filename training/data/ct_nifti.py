"""CT volumes as NIfTI: `images/NAME.nii.gz` with `labels/NAME.nii.gz`, or `.nii`; without a `labels` folder unlabeled.

How they are read stands behind the path, `ct_nifti:PATH?window_hu=-160,240&classes=3`, and so in the recipe, the
checkpoint and the model card. A patient is what precedes the first `__` of NAME, or all of it. Volumes are turned so
that every slice shows the patient's right on its left and the front at the top.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.errors import DataError
from training.config import parse_table
from training.data.hounsfield import apply_window, describe_window
from training.data.nifti_volumes import (
    RELATIVE_TOLERANCE,
    NiftiHeader,
    check_same_place,
    format_spacing,
    list_nifti,
    read_header,
    read_values,
    stem_of,
)
from training.data.samples import Sample
from training.data.volumes import Box, Stack, Volume, centre_box, check_labels, list_slices


class CtOptions(BaseModel):
    """`window_hu` is what becomes 0 to 255; `classes` how many the labels hold, with the background.

    `crop` is the side in pixels of a square round the middle of each slice, 0 for the whole slice; `spacing_mm`, as
    column, row, slice, is what every volume must have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    window_hu: tuple[float, float] = (-160.0, 240.0)
    classes: Annotated[int, Field(ge=2, le=256)] = 2
    crop: Annotated[int, Field(ge=0)] = 0
    spacing_mm: tuple[float, float, float] | None = None

    @field_validator("window_hu", "spacing_mm", mode="before")
    @classmethod
    def _split_numbers(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("window_hu")
    @classmethod
    def _refuse_no_window(cls, window_hu: tuple[float, float]) -> tuple[float, float]:
        if window_hu[0] >= window_hu[1]:
            raise ValueError("the lower end comes first")
        return window_hu


def read(root: Path, **options: str) -> Iterator[Sample | DataError]:
    """Every slice of every volume, in order of their names, from feet to head; then what does not match."""
    chosen = _parse(options)
    images, labels = list_nifti(root / "images"), {stem_of(p): p for p in list_nifti(root / "labels")}
    is_labeled = (root / "labels").is_dir()
    for path in images:
        label = labels.pop(stem_of(path), None)
        try:
            if is_labeled and label is None:
                raise DataError(
                    f"{path} has no labels.", f"one in {root / 'labels'}", "Add it, or remove the volume."
                )
            yield from list_slices(_open(path, label, chosen), is_labeled)
        except DataError as error:
            yield error
    for label in labels.values():
        yield DataError(
            f"{label} has no volume.", "one for every label file", "Add the volume, or remove it."
        )


def describe_intensities(**options: str) -> str:
    """What a picture must be for a network that learned from this reader."""
    chosen = _parse(options)
    cut = f", cut to {chosen.crop} x {chosen.crop} pixels round its middle" if chosen.crop else ""
    return f"an axial CT slice, the patient's right on its left: {describe_window(chosen.window_hu)}{cut}"


def _parse(options: dict[str, str]) -> CtOptions:
    return parse_table(CtOptions, dict(options), "ct_nifti", guide="docs/datasets.md", kind="source")


def _open(path: Path, label: Path | None, options: CtOptions) -> Volume:
    header = read_header(path, anatomical=True)
    _check_spacing(header, options)
    if label is not None:
        check_same_place(header, read_header(label, anatomical=True), anatomical=True)
    patient = stem_of(path).partition("__")[0]
    return Volume(
        f"{patient}/{stem_of(path)}",
        header.shape,
        tuple(range(header.shape[0])),
        header.spacing_mm,
        partial(_read, path, label, options),
    )


def _check_spacing(header: NiftiHeader, options: CtOptions) -> None:
    declared, found = options.spacing_mm, header.spacing_mm[::-1]
    if declared is not None and not np.allclose(found, declared, rtol=RELATIVE_TOLERANCE, atol=0):
        raise DataError(
            f"{header.path} has the spacing {format_spacing(found)}.",
            f"the declared {format_spacing(declared)}",
            "Resample the volume and its labels, or change spacing_mm.",
        )


def _read(path: Path, label: Path | None, options: CtOptions) -> Stack:
    levels = apply_window(read_values(path, anatomical=True), options.window_hu)
    labels = None
    if label is not None:
        labels = check_labels(read_values(label, anatomical=True), options.classes, label)
    rows, columns = levels.shape[1:]
    box = centre_box(rows, columns, options.crop) if options.crop else Box(0, 0, rows, columns)
    return Stack(levels, labels, box)
