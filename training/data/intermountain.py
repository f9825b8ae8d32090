"""Unlabeled frames of 16 laparoscopic operations, 854 x 480, with all that real feeds hold (black, standby, noise).

Layout: `images/<a>-<b>-frame-<n>.jpg`; the first two numbers name the operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.samples import Sample, read_image


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames, in order of operation and frame number; none is labeled."""
    samples = []
    for image_path in sorted((root / "images").glob("*.jpg")):
        operation, _, number = image_path.stem.partition("-frame-")
        if not (number.isascii() and number.isdigit()):
            yield DataError(
                f"{image_path} names no operation and frame.", "<a>-<b>-frame-<n>.jpg", "Rename or remove it."
            )
            continue
        sample_id = f"{operation}/{int(number):08d}"
        samples.append(Sample(sample_id, operation, partial(read_image, image_path)))
    yield from sorted(samples, key=lambda sample: sample.sample_id)
