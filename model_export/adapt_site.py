"""All that `surgseg-export adapt` is given of one site: what is learned from, what chooses, and what only measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_export.adapt_data import LabeledFrames, hold_out, read_labeled, write_split
from model_export.adapt_pool import UnlabeledFrames, read_unlabeled
from service.contract.model_card import DataSource
from service.errors import DataError
from training.config import DataConfig, Recipe
from training.data.samples import Sample

FEW_LABELED = 10
MUCH_INSTRUMENT = 0.5
LEARNED, HELD_OUT = "learned", "held_out"
SPLIT = "labeled.json"


@dataclass(frozen=True)
class Site:
    """`split` is the file that cuts the labeled frames; `learned` and `held_out` are its parts."""

    labeled: LabeledFrames
    split: Path
    learned: list[Sample]
    held_out: list[Sample]
    unlabeled: list[UnlabeledFrames]
    test: LabeledFrames | None

    def fill(self, recipe: Recipe, licence: str) -> Recipe:
        """The recipe with this site's frames in place of its own data."""
        cut = self.labeled.config.model_copy(update={"split": str(self.split), "part": LEARNED, "share": 1.0})
        use = f"training ({len(self.learned)}) and choosing the checkpoint ({len(self.held_out)}), labeled"
        labeled = _credit(cut, len(self.labeled.samples), use, licence)
        unlabeled = [_credit(u.config, u.frames, "training, unlabeled", licence) for u in self.unlabeled]
        data = {
            "labeled": (labeled,),
            "validation": (cut.model_copy(update={"part": HELD_OUT}),),
            "unlabeled": tuple(unlabeled),
        }
        return recipe.model_copy(update=data)

    def describe(self) -> dict[str, Any]:
        """For the report: what was learned from, frame by frame where it was labeled."""
        return {
            "labeled": {
                "data": self.labeled.config.source,
                "frames": len(self.labeled.samples),
                "sizes": {f"{w}x{h}": count for (w, h), count in self.labeled.sizes.items()},
                "instrument_share": self.labeled.instrument_share,
                LEARNED: [sample.sample_id for sample in self.learned],
                HELD_OUT: [sample.sample_id for sample in self.held_out],
            },
            "unlabeled": [
                {"data": frames.config.source, "frames": frames.frames, "screened": frames.screened}
                for frames in self.unlabeled
            ],
        }


def announce(step: str, found: str) -> None:
    """One plain line, at once: the reader may be watching a log."""
    print(f"{step:<10} {found}", flush=True)


def read_site(
    labeled: DataConfig,
    unlabeled: Sequence[DataConfig],
    test: DataConfig | None,
    classes: int,
    work: Path,
    *,
    is_transductive: bool,
) -> Site:
    """Read and check everything, a line for each; lists of frames go to `work`. Raises DataError."""
    frames = read_labeled(labeled, classes)
    announce("labeled", str(frames))
    learned, held_out = hold_out(frames.samples)
    _warn_of_doubtful(frames)
    names = ", ".join(sample.sample_id for sample in held_out)
    announce("held out", f"{len(held_out)} of them choose the checkpoint and are not learned from: {names}")
    write_split(work / SPLIT, {LEARNED: learned, HELD_OUT: held_out}, data=labeled.source)
    pools = []
    for number, config in enumerate(unlabeled, 1):
        pools.append(read_unlabeled(config, work / f"unlabeled_{number}.json"))
        announce("unlabeled", f"{config.source}: {pools[-1].screened}")
    tested = None if test is None else _read_test(test, classes, frames, pools, is_transductive)
    return Site(frames, work / SPLIT, learned, held_out, pools, tested)


def _read_test(
    config: DataConfig,
    classes: int,
    labeled: LabeledFrames,
    pools: Sequence[UnlabeledFrames],
    is_transductive: bool,
) -> LabeledFrames:
    """Frames to measure on, none of which was labeled for training, nor is unlabeled unless that is declared."""
    test = read_labeled(config, classes)
    announce("test", str(test))
    _require_apart(test, labeled.digests, "labeled", "Measure on frames of other operations.")
    for pool in [] if is_transductive else pools:
        remedy = "Take them out of one, or say --transductive: the figures then hold for these frames only."
        _require_apart(test, pool.digests, "unlabeled", remedy)
    return test


def _require_apart(test: LabeledFrames, digests: Mapping[str, str], kind: str, remedy: str) -> None:
    shared = sorted(test.digests[picture] for picture in test.digests.keys() & digests.keys())
    if shared:
        raise DataError(
            f"{len(shared)} pictures of {test.config.source} are also {kind} ones, first {shared[0]}.",
            "test pictures that training never sees",
            remedy,
        )


def _warn_of_doubtful(frames: LabeledFrames) -> None:
    if len(frames.samples) < FEW_LABELED:
        announce("warning", f"{len(frames.samples)} labeled frames are few: twenty or more do much better")
    if frames.instrument_share > MUCH_INSTRUMENT:
        announce("warning", "most pixels are labeled instrument: are the masks inverted?")


def _credit(data: DataConfig, frames: int, use: str, licence: str) -> DataConfig:
    """`data` with what the model card will say of it, unless that was given."""
    name = Path(data.source.partition(":")[2]).name
    source = DataSource(name=name, licence=licence, frames=frames, use=use)
    return data if data.card is not None else data.model_copy(update={"card": source})
