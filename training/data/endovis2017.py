"""EndoVis 2017 robotic instruments: 8 da Vinci videos of 225 frames, a folder of masks for each tool.

Layout: `instrument_dataset_k/left_frames/frameNNN.png` and `instrument_dataset_k/ground_truth/<tool>/frameNNN.png` with
10 shaft, 20 wrist, 30 clasper, 40 probe. Not all tool folders end in `_labels` in the release (`Prograsp_Forceps`),
so every folder of `ground_truth` is a tool. Frames and masks of 1920 x 1080 are cropped to 1280 x 1024 at (320, 28), as
the challenge says; 1280 x 1024 is taken as cropped already. Without `ground_truth` a video is unlabeled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from service.contract.geometry import Image, Mask
from service.errors import DataError
from training.data.pairs import pair
from training.data.samples import BACKGROUND, INSTRUMENT, Sample, read_classes, read_image

BINARY = {0: BACKGROUND, 10: INSTRUMENT, 20: INSTRUMENT, 30: INSTRUMENT, 40: INSTRUMENT}
PARTS = {0: BACKGROUND, 10: 1, 20: 2, 30: 3}
OTHER = "Other_labels"
FRAME_SIZE, VIEW_SIZE = (1080, 1920), (1024, 1280)  # height, width
TOP, LEFT = 28, 320


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames with binary masks: the union of all tools.

    `Other_labels` (laparoscopic instruments, a drop-in ultrasound probe) counts as instrument: whoever watches wants
    every tool. The challenge's own binary task leaves it out, so published figures are for a slightly smaller target.
    """
    return _read(root, BINARY, left_out=())


def read_parts(root: Path) -> Iterator[Sample | DataError]:
    """The same frames with the challenge's parts: 0 background, 1 shaft, 2 wrist, 3 clasper.

    `Other_labels` has no such parts and is background here. Where tools overlap, the part nearer to the tip counts.
    """
    return _read(root, PARTS, left_out=(OTHER,))


def _read(root: Path, class_of: Mapping[int, int], left_out: tuple[str, ...]) -> Iterator[Sample | DataError]:
    for video in sorted(root.glob("instrument_dataset_*"), key=lambda path: (len(path.name), path.name)):
        tools = sorted(path for path in (video / "ground_truth").glob("*") if path.is_dir())
        masks = {f"{tool}/frameNNN.png": _named(tool, video) for tool in tools if tool.name not in left_out}
        yield from pair(
            _named(video / "left_frames", video), masks, partial(_load_union, class_of=class_of), _load_view
        )


def _named(folder: Path, video: Path) -> list[tuple[str, Path]]:
    return [(f"{video.name}/{path.stem}", path) for path in sorted(folder.glob("frame*.png"))]


def _load_view(path: Path) -> Image:
    return _crop(read_image(path), path)


def _load_union(*paths: Path, class_of: Mapping[int, int]) -> Mask:
    return np.maximum.reduce([_crop(read_classes(path, class_of), path) for path in paths])


def _crop(array: np.ndarray, path: Path) -> np.ndarray:
    if array.shape[:2] == VIEW_SIZE:
        return array
    if array.shape[:2] != FRAME_SIZE:
        raise DataError(
            f"{path} is {array.shape[1]} x {array.shape[0]}.",
            "1920 x 1080, or 1280 x 1024 when it is cropped already",
            "Fetch it again.",
        )
    return np.ascontiguousarray(array[TOP : TOP + VIEW_SIZE[0], LEFT : LEFT + VIEW_SIZE[1]])
