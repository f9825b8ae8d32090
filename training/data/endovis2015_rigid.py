"""EndoVis 2015 rigid instruments: four laparoscopic operations of 40 frames, 640 x 480, sharp hand-made masks.

Layout: `OPk/Raw/img_NN_raw.png`, `OPk/Masks/img_NN_class.png` (0, 70 manipulator, 160 shaft).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.pairs import pair
from training.data.samples import BACKGROUND, INSTRUMENT, Sample, read_classes

BINARY = {0: BACKGROUND, 70: INSTRUMENT, 160: INSTRUMENT}
PARTS = {0: BACKGROUND, 160: 1, 70: 2}


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames of all operations, in order of operation and number, with binary masks."""
    return _read(root, BINARY)


def read_parts(root: Path) -> Iterator[Sample | DataError]:
    """The same frames with three classes: 0 background, 1 shaft, 2 manipulator."""
    return _read(root, PARTS)


def _read(root: Path, class_of: Mapping[int, int]) -> Iterator[Sample | DataError]:
    images = [
        (f"{path.parts[-3]}/{path.stem.removesuffix('_raw')}", path)
        for path in sorted(root.glob("OP*/Raw/img_*_raw.png"))
    ]
    masks = [
        (f"{path.parts[-3]}/{path.stem.removesuffix('_class')}", path)
        for path in sorted(root.glob("OP*/Masks/img_*_class.png"))
    ]
    return pair(images, {"OPk/Masks/img_NN_class.png": masks}, partial(read_classes, class_of=class_of))
