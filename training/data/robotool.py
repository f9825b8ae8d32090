"""RoboTool: 514 frames of 20 robotic operations from published videos, with binary masks.

Layout: `<video>_<n>.png` with `<video>_<n>_seg.png` beside it (`dv10_00001.png`), in one folder. There is no official
split. That masks are 0 and 255, or 0 and 1, is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.pairs import list_pictures, pair
from training.data.samples import Sample, read_binary_mask

MASK_ENDING = "_seg"


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames, in order of video and number."""
    images, masks = [], []
    for path in list_pictures(root):
        name = path.stem.removesuffix(MASK_ENDING)
        video = name.rpartition("_")[0] or root.resolve().name
        (masks if path.stem.endswith(MASK_ENDING) else images).append((f"{video}/{name}", path))
    return pair(
        images, {"<video>_<n>_seg.png beside it": masks}, partial(read_binary_mask, known=(0, 1, 255))
    )
