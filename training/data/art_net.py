"""ART-Net: non-robotic laparoscopic hysterectomy; 816 frames with a tool and as many without, with binary masks.

Layout: for `Train` and for `Test`, `Train/Train_Positive/<name>.png` with its mask
`Train/Train_Positive_Tool_Mask/<name>_Tool_Mask.png`, and `Train/Train_Negative/<name>.png`: frames without a visible
tool, whose mask is empty. `TrainPos` and `TrainNeg`, as the authors' first release named the folders, are taken as
well; that its masks lie in `TrainPos_Tool_Mask` in the same way is assumed. Edge lines, mid lines and tips are left
alone. Nothing says which of the 29 operations a frame is from: `Train` or `Test` stands for the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from service.contract.geometry import Mask
from service.errors import DataError
from training.data.pairs import list_pictures, pair
from training.data.samples import Sample, read_binary_mask, read_image

MASK_ENDING = "_Tool_Mask"
PARTS = ("Train", "Test")


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames of `Train` and `Test`, those with a tool first, in order of their names."""
    load_mask = partial(read_binary_mask, known=(0, 1, 255))
    for part in PARTS:
        for positive in (root / part / f"{part}_Positive", root / part / f"{part}Pos"):
            masks = positive.with_name(positive.name + MASK_ENDING)
            yield from pair(
                _named(positive, part), {f"{masks}/<name>{MASK_ENDING}.png": _named(masks, part)}, load_mask
            )
        for negative in (root / part / f"{part}_Negative", root / part / f"{part}Neg"):
            frames = _named(negative, part)
            yield from pair(frames, {"itself": frames}, _empty_mask)


def _named(folder: Path, part: str) -> list[tuple[str, Path]]:
    # the first release numbers both kinds from 1: the kind is part of the id
    kind = "neg" if "Neg" in folder.name else "pos"
    return [(f"{part}/{kind}_{path.stem.removesuffix(MASK_ENDING)}", path) for path in list_pictures(folder)]


def _empty_mask(image_path: Path) -> Mask:
    return np.zeros(read_image(image_path).shape[:2], np.uint8)
