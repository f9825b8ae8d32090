"""EndoVis 2015 robotic instruments: three ex-vivo da Vinci videos, 720 x 576 at 25 fps, masks as videos.

Layout: `Datasetk/Video.avi` with `Segmentation.avi`, or with `Left_` and `Right_Instrument_Segmentation.avi`. The
masks come from kinematics and are a few pixels off. Their luma is 0 background, 70 manipulator, 160 shaft, give or take
what compression changes: everything nearer to 70 than to 0 is instrument.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache, partial
from pathlib import Path

import av
import numpy as np

from service.contract.geometry import Image, Mask
from service.errors import DataError
from training.data.samples import Sample

MANIPULATOR_LUMA = 70


def read(root: Path) -> Iterator[Sample | DataError]:
    """Every frame of every video, in order. Frames load fastest in order: a video is decoded front to back."""
    for video_path in sorted(root.glob("Dataset*/Video.avi")):
        mask_paths = tuple(sorted(video_path.parent.glob("*Segmentation.avi")))
        try:
            count = _count_pairs(video_path, mask_paths)
        except DataError as error:
            yield error
            continue
        video = video_path.parent.name
        for index in range(count):
            yield Sample(
                sample_id=f"{video}/{index:05d}",
                video=video,
                load_image=partial(_load_image, video_path, index),
                load_mask=partial(_load_mask, mask_paths, index),
            )


def _count_pairs(video_path: Path, mask_paths: tuple[Path, ...]) -> int:
    """How many frames the video and each of its mask videos have. Raises DataError when they differ."""
    if not mask_paths:
        raise DataError(
            f"{video_path} has no mask video.", "*Segmentation.avi beside it", "Complete the data set."
        )
    counts = {path: _count_frames(path) for path in (video_path, *mask_paths)}
    if len(set(counts.values())) != 1:
        lengths = ", ".join(f"{path.name} {count}" for path, count in counts.items())
        raise DataError(
            f"{video_path.parent}: frame counts differ: {lengths}.",
            "equal lengths",
            "Fetch the videos again.",
        )
    return counts[video_path]


class _SequentialVideo:
    """Decodes front to back; going back starts again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_index = 0
        self._container = av.open(str(path))
        self._frames = self._container.decode(video=0)
        self._current: av.VideoFrame | None = None

    def frame(self, index: int) -> av.VideoFrame:
        if index < self._next_index - 1:
            self._container.close()
            self.__init__(self._path)  # type: ignore[misc]
        while self._next_index <= index:
            self._current = next(self._frames, None)
            self._next_index += 1
            if self._current is None:
                raise DataError(
                    f"{self._path} ends before frame {index}.", "the whole video", "Fetch it again."
                )
        assert self._current is not None
        return self._current


@lru_cache(maxsize=3)
def _open(path: Path) -> _SequentialVideo:
    return _SequentialVideo(path)


@cache
def _count_frames(path: Path) -> int:
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} cannot be decoded ({error}).", "a video", "Fetch it again.") from error


def _load_image(path: Path, index: int) -> Image:
    return _open(path).frame(index).to_ndarray(format="rgb24")


def _load_mask(paths: tuple[Path, ...], index: int) -> Mask:
    lumas = [_open(path).frame(index).to_ndarray(format="gray") for path in paths]
    return (np.maximum.reduce(lumas) > MANIPULATOR_LUMA // 2).astype(np.uint8)
