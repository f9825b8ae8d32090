"""Laparoscopic and robotic frames of five published videos, 640 x 640, stretched (the true aspect is lost).

Layout: `images/<video>_<n>.jpg`, `masks/<video>_<n>.png` with 255 = instrument. Masks are coarse, and some visible
tools are unlabeled.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.pairs import pair
from training.data.samples import Sample, read_binary_mask


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames, in order of video and number."""
    images, masks = _named(root / "images", "*.jpg"), _named(root / "masks", "*.png")
    return pair(images, {"masks/<video>_<n>.png": masks}, partial(read_binary_mask, known=(0, 255)))


def _named(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    return [(f"{path.stem.partition('_')[0]}/{path.stem}", path) for path in sorted(folder.glob(pattern))]
