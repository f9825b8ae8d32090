"""`surgseg-train data check`: counts what a data set holds and names everything that is wrong with it.

Every picture and mask is decoded, as training would decode it, so what passes here can be trained on.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from service.contract.geometry import Image, Mask
from service.errors import DataError
from training.data import read_entries
from training.data.samples import Sample, check_same_size
from training.data.splits import load_split


@dataclass
class Tally:
    """What some frames hold: how many there are, how many have a mask, and the pixels of each class in the masks."""

    frames: int = 0
    labeled: int = 0
    pixels: Counter[int] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.frames + other.frames, self.labeled + other.labeled, self.pixels + other.pixels)

    def share(self, class_id: int) -> float:
        """The class's share of all labeled pixels, 0 to 1."""
        return self.pixels[class_id] / max(1, self.pixels.total())

    def to_json(self) -> dict[str, Any]:
        """`labels` maps each class to its share of the pixels."""
        labels = {str(class_id): self.share(class_id) for class_id in sorted(self.pixels)}
        return {"frames": self.frames, "labeled": self.labeled, "labels": labels}


@dataclass
class DataReport:
    """What was found. `read` frames were decoded; `sizes` counts their (width, height)."""

    data: str
    read: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    videos: dict[str, Tally] = field(default_factory=dict)
    parts: dict[str, Tally] = field(default_factory=dict)
    problems: list[DataError] = field(default_factory=list)

    @property
    def overall(self) -> Tally:
        return sum(self.videos.values(), Tally())

    def add_problem(self, problem: DataError) -> None:
        """Keep a problem, once: a file that is both picture and mask fails twice."""
        if all(str(problem) != str(known) for known in self.problems[-2:]):
            self.problems.append(problem)

    def to_json(self) -> dict[str, Any]:
        """Everything that the table says, and each problem's remedy."""
        return {
            "data": self.data,
            **self.overall.to_json(),
            "read": self.read,
            "sizes": {f"{width}x{height}": count for (width, height), count in self.sizes.most_common()},
            "videos": {video: tally.to_json() for video, tally in self.videos.items()},
            "parts": {
                part: {"frames": tally.frames, "labeled": tally.labeled} for part, tally in self.parts.items()
            },
            "problems": [
                {"found": problem.found, "expected": problem.expected, "remedy": problem.remedy}
                for problem in self.problems
            ],
        }

    def to_table(self) -> str:
        """A line per video and one for all, sizes, the parts of the split, and a line per problem."""
        overall = self.overall
        classes = sorted(overall.pixels)
        width = max(len("video"), *map(len, [*self.videos, "all"])) + 2
        lines = [
            f"{'video':<{width}}{'frames':>8}{'labeled':>9}" + "".join(f"{f'class {c}':>10}" for c in classes)
        ]
        for video, tally in [*self.videos.items(), ("all", overall)]:
            shares = "".join(f"{tally.share(c):>10.2%}" if tally.pixels else f"{'-':>10}" for c in classes)
            lines.append(f"{video:<{width}}{tally.frames:>8}{tally.labeled:>9}{shares}")
        sizes = ", ".join(f"{w} x {h} ({count})" for (w, h), count in self.sizes.most_common())
        lines.append(f"read {self.read} of {overall.frames} frames; sizes: {sizes or 'none'}")
        lines += [
            f"part {part}: {tally.frames} frames, {tally.labeled} labeled"
            for part, tally in self.parts.items()
        ]
        lines.append(f"problems: {len(self.problems) or 'none'}")
        lines += [f"  {problem.found} Expected {problem.expected}." for problem in self.problems]
        return "\n".join(lines)


def check_data(spec: str, split: str = "", stride: int = 1) -> DataReport:
    """Check `READER:PATH`, reading every `stride`-th frame, and whether the split fits it.

    Raises DataError when there is no such reader, path or split, or nothing there at all.
    """
    report = DataReport(spec)
    ids = load_split(split) if split else {}
    samples: list[Sample] = []
    try:
        for entry in read_entries(spec):
            if isinstance(entry, DataError):
                report.add_problem(entry)
            else:
                samples.append(entry)
    except DataError as error:
        if not samples and not report.problems:
            raise
        report.add_problem(error)
    if not samples and not report.problems:
        raise DataError(
            f"{spec} holds no frames.", "the reader's layout", "See docs/datasets.md for the layout."
        )
    _read_frames(report, samples, stride)
    _compare_with_split(report, samples, ids, split)
    return report


def _read_frames(report: DataReport, samples: Sequence[Sample], stride: int) -> None:
    for sample in samples:
        tally = report.videos.setdefault(sample.video, Tally())
        tally.frames += 1
        tally.labeled += sample.load_mask is not None
    for sample in tqdm(samples[::stride], desc="check", unit="frame", disable=None):
        report.read += 1
        image_hwc, mask_hw = _load(report, sample)
        if image_hwc is not None:
            report.sizes[image_hwc.shape[1], image_hwc.shape[0]] += 1
        if mask_hw is not None:
            counts = np.bincount(mask_hw.ravel())
            present = {int(c): int(counts[c]) for c in np.flatnonzero(counts)}
            report.videos[sample.video].pixels.update(present)


def _load(report: DataReport, sample: Sample) -> tuple[Image | None, Mask | None]:
    """Picture and mask apart, so that one that cannot be read does not hide the other."""
    image_hwc = mask_hw = None
    try:
        image_hwc = sample.load_image()
    except DataError as error:
        report.add_problem(error)
    try:
        mask_hw = None if sample.load_mask is None else sample.load_mask()
        if image_hwc is not None and mask_hw is not None:
            check_same_size(sample.sample_id, image_hwc, mask_hw)
    except DataError as error:
        report.add_problem(error)
    return image_hwc, mask_hw


def _compare_with_split(
    report: DataReport, samples: Sequence[Sample], ids: dict[str, list[str]], split: str
) -> None:
    by_id = {sample.sample_id: sample for sample in samples}
    for part, names in ids.items():
        present = [by_id[name] for name in names if name in by_id]
        labeled = sum(sample.load_mask is not None for sample in present)
        report.parts[part] = Tally(len(present), labeled)
        for name in names:
            if name not in by_id:
                found = f"The part {part} of the split {split} names {name}."
                report.add_problem(
                    DataError(found, "a frame that is there", "Complete the data set or the split.")
                )
        if not labeled:
            found = f"The part {part} of the split {split} has no labeled frame."
            report.add_problem(DataError(found, "at least one", "Label frames of it, or leave the part out."))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `surgseg-train data check`."""
    parser.add_argument("name", metavar="NAME", help="the reader, for example folder (docs/datasets.md)")
    parser.add_argument("path", metavar="PATH", help="where the data set is")
    parser.add_argument(
        "--split", default="", help="a committed split or a JSON file to hold against the data"
    )
    parser.add_argument(
        "--stride", type=int, default=1, metavar="N", help="read every N-th frame (default: 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")


def run_check(arguments: argparse.Namespace) -> None:
    """Check as the command line asks and print the table. Raises DataError when anything is wrong."""
    if arguments.stride < 1:
        raise DataError(f"--stride {arguments.stride}.", "1 or more", "Leave it out for every frame.")
    report = check_data(f"{arguments.name}:{arguments.path}", arguments.split, arguments.stride)
    print(report.to_table())
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    if report.problems:
        raise DataError(
            f"Problems in {arguments.path}: {len(report.problems)}.", "none", "Mend what is named above."
        )
