"""Kvasir-Instrument: 590 gastroscopy and colonoscopy frames of 720 x 576 to 1280 x 1024, with binary masks.

Layout: `images/<id>.jpg`, `masks/<id>.png` (255 = tool, three equal channels), and the official lists `train.txt` and
`test.txt` (472 and 118 ids). Nothing says which video a frame is from: the list stands for the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.pairs import IMAGE_SUFFIXES, list_pictures, pair
from training.data.samples import Sample, read_binary_mask

PARTS = ("train", "test")
UNLISTED = "unlisted"


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames in order of their names; `video` is `train`, `test`, or `unlisted` where both lists are missing."""
    images = list_pictures(root / "images")
    names = {path.stem for path in images}
    part_of: dict[str, str] = {}
    for part in PARTS:
        for name in _read_list(root / f"{part}.txt"):
            if name in part_of:
                yield DataError(
                    f"{root}: {name} is named twice, by {part_of[name]}.txt and {part}.txt.",
                    "once",
                    "Remove one.",
                )
            elif name not in names:
                yield DataError(
                    f"{root / part}.txt names {name}.", "a picture of that name in images/", "Add it."
                )
            part_of.setdefault(name, part)
    for name in sorted(names - set(part_of)) if part_of else ():
        yield DataError(f"{root}: {name} is in no list.", "each in train.txt or test.txt", "List it.")
    yield from pair(
        [(f"{part_of.get(path.stem, UNLISTED)}/{path.stem}", path) for path in images],
        {
            "masks/<id>.png": [
                (f"{part_of.get(path.stem, UNLISTED)}/{path.stem}", path)
                for path in list_pictures(root / "masks")
            ]
        },
        partial(read_binary_mask, known=(0, 255)),
    )


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    # some copies of the lists name files, others ids
    return [
        Path(line).stem if Path(line).suffix.lower() in IMAGE_SUFFIXES else line for line in lines if line
    ]
