"""The unlabeled frames that `surgseg-export adapt` is given: every one read once, the poor ones left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from model_export.adapt_data import digest, require_sound, write_split
from service.errors import DataError
from training.config import DataConfig
from training.data.batches import open_pools
from training.data.samples import Sample
from training.data.screening import screen

PART = "unlabeled"


@dataclass(frozen=True)
class UnlabeledFrames:
    """The frames that are learned from, selected by `config`; `screened` says what was left out of them.

    `digests` maps what model_export.adapt_data.digest gives to frames' ids.
    """

    config: DataConfig
    frames: int
    screened: str
    digests: dict[str, str]


def read_unlabeled(config: DataConfig, path: Path) -> UnlabeledFrames:
    """Decode every frame, screen them where `config.screen` says so, and list in `path` the ones that remain.

    A list made for the same `config` earlier is believed. Raises DataError when a frame cannot be read, after printing
    all of these, or when none remains.
    """
    selection = {"split": str(path), "part": PART, "share": 1.0, "screen": False}
    selected, settings = config.model_copy(update=selection), config.model_dump(mode="json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known.get("settings") != settings:
        samples = open_pools([config.model_copy(update={"screen": False})], labeled=False)[0].samples
        survey = _Survey()
        screened = f"{len(samples)} frames, not screened"
        if config.screen:
            screening = screen(survey.read(samples))
            screened, kept = screening.describe(), {sample.sample_id for sample in screening.kept}
        else:
            kept = {sample.sample_id for sample in survey.read(samples)}
        require_sound(config.source, survey.problems)
        _require_some(config, screened, len(kept))
        digests = {picture: sample_id for picture, sample_id in survey.digests.items() if sample_id in kept}
        known = {"settings": settings, "frames": len(kept), "screened": screened, "digests": digests}
        write_split(path, {PART: [sample for sample in samples if sample.sample_id in kept]}, **known)
    return UnlabeledFrames(selected, known["frames"], known["screened"], known["digests"])


@dataclass
class _Survey:
    """What one pass over the frames finds beside what the pass is for."""

    problems: list[DataError] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    def read(self, samples: Sequence[Sample]) -> Iterator[Sample]:
        """Frames that can be read, already decoded: the picture is handed out once and then let go."""
        for sample in samples:
            try:
                image_hwc = sample.load_image()
            except DataError as error:
                self.problems.append(error)
                continue
            self.digests.setdefault(digest(image_hwc), sample.sample_id)
            yield replace(sample, load_image=[image_hwc].pop)


def _require_some(config: DataConfig, screened: str, kept: int) -> None:
    if not kept:
        raise DataError(
            f"No frame of {config.source} is worth learning from: {screened}.",
            "frames of operations",
            "Name other frames, or add ,screen=false to use them all.",
        )
