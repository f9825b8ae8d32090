"""The generic layout: `<root>/{train,test}/{image,mask}/` or just `<root>/{image,mask}/`, masks named as pictures,
0 = background, 255 or 1 = instrument. Without a `mask` folder the frames are unlabeled.

A frame's video is its part, `train`, `test` or `frames`, with its sub-folder inside `image/` where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.pairs import list_pictures, pair
from training.data.samples import Sample, read_binary_mask

KNOWN_VALUES = (0, 1, 255)
FOLDER_OF = {"train": "train", "test": "test", "frames": "."}


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames of `train`, of `test` and of the root itself, each in order of their names."""
    for part, folder in FOLDER_OF.items():
        images, masks = root / folder / "image", root / folder / "mask"
        places = {f"{masks}/NAME.png": _named(masks, part)} if masks.is_dir() else {}
        yield from pair(_named(images, part), places, partial(read_binary_mask, known=KNOWN_VALUES))


def _named(folder: Path, part: str) -> list[tuple[str, Path]]:
    return [
        (f"{part}/{path.relative_to(folder).with_suffix('').as_posix()}", path)
        for path in list_pictures(folder)
    ]
