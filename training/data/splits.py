"""Which frames train, validate and test: committed files of ids, cut by operation or video, hashed into checkpoints.

A split file is `{"data": reader, "by": "operation" | "video" | "frame", "parts": {part: {video: [name, ...]}}}`; a
frame's id is `video/name`. Parts that share a video are refused unless the file says `"by": "frame"`, for data that do
not tell which video a frame is from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

from service.errors import DataError
from training.data.samples import Sample

SPLITS = Path(__file__).parent / "splits"


def load_split(name: str) -> dict[str, list[str]]:
    """The frame ids of each part. `name` is that of a committed split, or the path of a JSON file."""
    path = Path(name) if name.endswith(".json") else SPLITS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SPLITS.glob("*.json")))
        raise DataError(
            f"There is no split {name!r}.", f"a JSON file, or one of {known}", "Check the recipe."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts, by_frame = content["parts"], content.get("by") == "frame"
        ids = {
            part: [f"{video}/{frame}" for video, frames in videos.items() for frame in frames]
            for part, videos in parts.items()
        }
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is not a split file ({error}).",
            '{"parts": {part: {video: [name]}}}',
            "See docs/datasets.md.",
        ) from error
    _check_disjoint(ids, path, by_frame)
    return ids


def select_part(samples: Sequence[Sample], split: str, part: str) -> list[Sample]:
    """The samples of one part of a split, in the split's order. Raises DataError for an id that is not there."""
    ids = load_split(split)
    if part not in ids:
        raise DataError(
            f"The split {split} has no part {part!r}.", f"one of {', '.join(ids)}", "Check the recipe."
        )
    if not ids[part]:
        raise DataError(
            f"The part {part} of the split {split} is empty.", "at least one frame", "Mend the split."
        )
    by_id = {sample.sample_id: sample for sample in samples}
    missing = [sample_id for sample_id in ids[part] if sample_id not in by_id]
    if missing:
        raise DataError(
            f"The split {split} names {len(missing)} frames that are not there, first {missing[0]}.",
            "every frame of the split in the data",
            "Complete the data set, or make a split of what is there.",
        )
    return [by_id[sample_id] for sample_id in ids[part]]


def take_share(samples: Sequence[Sample], share: float, seed: int) -> list[Sample]:
    """That share of every video's frames, at least one of each, one from each of as many equal stretches.

    Neighbouring frames are alike, so the first ones, or a run of them, would be worth less than their number.
    """
    videos: dict[str, list[Sample]] = {}
    for sample in samples:
        videos.setdefault(sample.video, []).append(sample)
    rng = np.random.default_rng(seed)
    kept = []
    for frames in videos.values():
        count = max(1, round(share * len(frames)))
        starts = [i * len(frames) // count for i in range(count + 1)]
        kept += [frames[a + int(rng.random() * (b - a))] for a, b in pairwise(starts)]
    return kept


def take_videos(samples: Sequence[Sample], share: float, seed: int) -> list[Sample]:
    """All frames of that share of the videos, at least of one. With the same seed a larger share holds the smaller."""
    videos = list(dict.fromkeys(sample.video for sample in samples))
    order = np.random.default_rng(seed).permutation(len(videos))
    kept = {videos[index] for index in order[: max(1, round(share * len(videos)))]}
    return [sample for sample in samples if sample.video in kept]


def hash_parts(parts: dict[str, Sequence[Sample]], labels: Sequence[str] = ()) -> str:
    """SHA-256 over the ids of every part, so that a checkpoint says exactly what it saw.

    `labels` are digests of the label files whose masks were learned from.
    """
    listing: dict[str, list[str]] = {
        part: [sample.sample_id for sample in samples] for part, samples in sorted(parts.items())
    }
    if labels:
        listing["labels"] = list(labels)
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _check_disjoint(ids: dict[str, list[str]], path: Path, by_frame: bool) -> None:
    for first, second in combinations(ids, 2):
        shared = set(ids[first]) & set(ids[second])
        if shared:
            raise DataError(
                f"{path}: {first} and {second} share the frame {min(shared)}.",
                "each frame in one part",
                "Take it out of one.",
            )
        shared = {name.rpartition("/")[0] for name in ids[first]} & {
            name.rpartition("/")[0] for name in ids[second]
        }
        if shared and not by_frame:
            raise DataError(
                f"{path}: {first} and {second} share the video {min(shared)}.",
                "parts cut by operation or video",
                "Neighbouring frames are alike: move the whole video to one part.",
            )
