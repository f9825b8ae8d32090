"""The labeled frames that `surgseg-export adapt` is given: read, checked and cut before anything is trained on them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.geometry import Image
from service.errors import DataError
from training.config import DataConfig, parse_table, parse_value
from training.data import READERS
from training.data.batches import open_pools
from training.data.check import check_data
from training.data.samples import Sample

FEWEST_LABELED = 5
FEWEST_HELD_OUT = 3
HELD_OUT_ONE_IN = 4
PARTS_OF_GENERIC = (".", "train", "test")


@dataclass(frozen=True)
class LabeledFrames:
    """Frames and masks that were read without a problem.

    `sizes` counts (width, height), `pixels` those of each class; `digests` maps what `digest` gives to frames' ids.
    """

    config: DataConfig
    samples: list[Sample]
    sizes: Counter[tuple[int, int]]
    pixels: Counter[int]
    digests: dict[str, str]

    @property
    def instrument_share(self) -> float:
        """The share of pixels that are not background, 0 to 1."""
        return 1 - self.pixels[0] / self.pixels.total()

    def __str__(self) -> str:
        videos = len({sample.video for sample in self.samples})
        sizes = ", ".join(f"{width} x {height}" for (width, height), _ in self.sizes.most_common())
        counts = f"{len(self.samples)} frames of {videos} video{'s' * (videos > 1)}, {sizes}"
        return f"{counts}; {self.instrument_share:.1%} of their pixels are instrument"


def parse_data(text: str, reader: str, **defaults: Any) -> DataConfig:
    """`PATH`, for `reader`, or `READER:PATH`; `,key=value` sets other keys of a recipe's [[labeled]] table.

    A plain path with `image/` in it, or in its `train/` or `test/`, is read as the generic layout. Raises DataError.
    """
    source, *settings = re.split(r",(?=[a-z_]+=)", text)
    if source.partition(":")[0] not in READERS and (":" not in source or Path(source).exists()):
        is_generic = any((Path(source) / part / "image").is_dir() for part in PARTS_OF_GENERIC)
        source = f"{'folder' if is_generic else reader}:{source}"
    pairs = (setting.partition("=") for setting in settings)
    values = {key: parse_value(value) for key, _, value in pairs}
    return parse_table(DataConfig, {**defaults, **values, "source": source}, text)


def read_labeled(config: DataConfig, classes: int) -> LabeledFrames:
    """Decode every frame and mask. Raises DataError when anything is wrong, after printing all that is."""
    require_sound(config.source, check_data(config.source).problems)
    samples = open_pools([config])[0].samples
    sizes: Counter[tuple[int, int]] = Counter()
    pixels: Counter[int] = Counter()
    digests: dict[str, str] = {}
    for sample in samples:
        image_hwc, mask_hw = sample.load()
        assert mask_hw is not None  # open_pools refuses what has none
        sizes[image_hwc.shape[1], image_hwc.shape[0]] += 1
        pixels.update({class_id: int(n) for class_id, n in enumerate(np.bincount(mask_hw.ravel())) if n})
        digests[digest(image_hwc)] = sample.sample_id
    if max(pixels) == 0 or max(pixels) >= classes:
        raise DataError(
            f"The masks of {config.source} hold only the classes {sorted(pixels)}.",
            f"instruments as classes 1 to {classes - 1}",
            "Check that these are the masks of these frames, and the classes of the recipe.",
        )
    return LabeledFrames(config, samples, sizes, pixels, digests)


def require_sound(source: str, problems: Sequence[DataError]) -> None:
    """Print a line for each problem. Raises DataError when there is one."""
    for problem in problems:
        print(f"{'problem':<10} {problem.found} Expected {problem.expected}.")
    if problems:
        raise DataError(
            f"{source} has {len(problems)} problem{'s' * (len(problems) > 1)}, first: {problems[0].found}",
            "none: nothing is trained on data that is damaged",
            "Mend or remove what is named above, and give the same command again.",
        )


def hold_out(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Frames to learn from, and frames to choose the checkpoint by: the last quarter of each video in order of time.

    Where those are fewer than three, the latest that remain of the longest video join them. Raises DataError when
    there are too few frames for both.
    """
    if len(samples) < FEWEST_LABELED:
        raise DataError(
            f"There are {len(samples)} labeled frames.",
            f"at least {FEWEST_LABELED}, of which {FEWEST_HELD_OUT} choose the checkpoint",
            "Label more frames of different scenes: twenty are a good start.",
        )
    videos: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: _time_order(sample.sample_id)):
        videos.setdefault(sample.video, []).append(sample)
    kept = {video: len(frames) - len(frames) // HELD_OUT_ONE_IN for video, frames in videos.items()}
    while sum(kept.values()) > len(samples) - FEWEST_HELD_OUT:
        kept[max(kept, key=lambda video: kept[video])] -= 1
    learned = [sample for video, frames in videos.items() for sample in frames[: kept[video]]]
    return learned, [sample for video, frames in videos.items() for sample in frames[kept[video] :]]


def write_split(path: Path, parts: Mapping[str, Sequence[Sample]], **notes: Any) -> None:
    """A split file (training.data.splits) of these parts, which may cut through videos; `notes` are keys beside."""
    listing: dict[str, dict[str, list[str]]] = {}
    for part, samples in parts.items():
        for sample in samples:
            name = sample.sample_id.removeprefix(f"{sample.video}/")
            listing.setdefault(part, {}).setdefault(sample.video, []).append(name)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"by": "frame", "parts": listing, **notes}, indent=1), encoding="utf-8")
    partial.replace(path)


def digest(image_hwc: Image) -> str:
    """SHA-256 of a picture's size and pixels: the same for the same picture, whatever its file is called."""
    return hashlib.sha256(str(image_hwc.shape).encode() + image_hwc.tobytes()).hexdigest()


def _time_order(sample_id: str) -> list[tuple[int, str]]:
    """A sorting key by which frame 10 comes after frame 9, also where numbers have no leading zeros."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", sample_id)]
