"""CholecSeg8k: 8080 frames of 17 cholecystectomies (Cholec80), 854 x 480, 13 classes, of which two are instruments.

Layout: `videoNN/videoNN_xxxxx/frame_k_endo.png` with `frame_k_endo_watershed_mask.png` beside it. Values are those
that the release holds: 31 grasper and 32 L-hook electrocautery are instrument, the other classes background; so are
255, a white rim one pixel wide, and 0, pixels that were left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.pairs import pair
from training.data.samples import BACKGROUND, INSTRUMENT, Sample, read_classes

ANATOMY = (50, 11, 21, 13, 12, 23, 24, 25, 22, 33, 5)
CLASS_OF = dict.fromkeys((0, 255, *ANATOMY), BACKGROUND) | {31: INSTRUMENT, 32: INSTRUMENT}
IMAGE_ENDING, MASK_ENDING = "_endo.png", "_endo_watershed_mask.png"


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames, in order of video, clip and frame number. A video is an operation: its clips stay together."""
    masks = {f"frame_k{MASK_ENDING} beside it": _named(root, MASK_ENDING)}
    return pair(_named(root, IMAGE_ENDING), masks, partial(read_classes, class_of=CLASS_OF))


def _named(root: Path, ending: str) -> list[tuple[str, Path]]:
    paths = root.glob(f"video*/video*_*/frame_*{ending}")
    # frame numbers are not padded: shorter names come first
    in_order = sorted(paths, key=lambda path: (path.parent, len(path.name), path.name))
    return [
        (f"{path.parts[-3]}/{path.parts[-2]}_{path.name.removesuffix(ending)}", path) for path in in_order
    ]
