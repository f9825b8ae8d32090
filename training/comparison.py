"""What a sweep found: means with their spread, paired differences to supervised training, as tables of text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import DataError
from training.run_log import LOG
from training.sweep import PLAN, RUNS, read_results
from training.sweep_run import DONE, FAILED

METRIC_NAMES = {"dice": "Dice", "iou": "IoU", "nsd": "NSD"}
NOTHING = "–"
NAMED_VIDEOS = 4
Line = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of `n` values; the deviation is None for fewer than two."""

    mean: float
    deviation: float | None
    n: int

    def __str__(self) -> str:
        return self.format("{:.3f}")

    def format(self, number: str) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.3f}"
        return number.format(self.mean) + spread


def spread_of(values: Iterable[float]) -> Spread | None:
    """The spread of some values; None of none."""
    array = np.array(list(values))
    if not len(array):
        return None
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


@dataclass(frozen=True)
class Table:
    """A table of text; rows with the same first cell belong together."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def to_markdown(self) -> str:
        """GitHub's pipes."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )


@dataclass(frozen=True)
class Comparison:
    """A sweep's folder as read: its plan, the lines of finished runs in the order planned, and what is not there."""

    folder: Path
    plan: dict[str, Any]
    done: list[Line]
    failed: list[Line]
    missing: list[Line]

    @cached_property
    def methods(self) -> list[str]:
        """Labels in the order of the sweep, then any that only results have."""
        return list(dict.fromkeys([*self.plan["methods"], *(line["method"] for line in self.done)]))

    @cached_property
    def shares(self) -> list[float]:
        return sorted({line["share"] for line in self.done})

    @cached_property
    def folds(self) -> list[str]:
        return list(dict.fromkeys([line["fold"] for line in self.plan["runs"] + self.done]))

    @cached_property
    def baseline(self) -> str | None:
        """The label of supervised training, that the others are compared with."""
        labels = (label for label, method in self.plan["methods"].items() if method["name"] == "supervised")
        return next(labels, None)

    def select(self, **keys: Any) -> list[Line]:
        """Finished runs with these values, for example `method="unimatch", share=0.2`."""
        return [line for line in self.done if all(line[key] == value for key, value in keys.items())]

    def differences(
        self, method: str, share: float, measure: Callable[[Line], float | None] = lambda line: line["dice"]
    ) -> list[float]:
        """Test Dice minus that of supervised training, of each pair with equal share, fold and seed.

        `measure` takes another figure of a run's line; pairs that lack it are left out.
        """
        if self.baseline in (None, method):
            return []
        base, own = (
            {
                (line["fold"], line["seed"]): value
                for line in self.select(method=name, share=share)
                if (value := measure(line)) is not None
            }
            for name in (self.baseline, method)
        )
        return [value - base[pair] for pair, value in own.items() if pair in base]

    def cells(self) -> list[tuple[float, str]]:
        """Every share and method that has finished runs."""
        return [(s, m) for s in self.shares for m in self.methods if self.select(method=m, share=s)]

    def validation_curve(self, line: Line) -> list[tuple[int, float]]:
        """Step and validation Dice of one run, from its log; empty where the log is not kept."""
        path = self.folder / RUNS / line["run"] / LOG
        if not path.is_file():
            return []
        dices: dict[int, float] = {}
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(text)
            except (
                ValueError
            ):  # a line cut short when the run was killed; the resumed run wrote that step again
                continue
            if entry.get("part") == "validation":
                dices[entry["step"]] = entry["dice"]
        return sorted(dices.items())


def read_comparison(folder: Path) -> Comparison:
    """Read a sweep's folder. Raises DataError when it is none or nothing has finished."""
    path = folder / PLAN
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        order = {run["run"]: position for position, run in enumerate(plan["runs"])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{folder} is not the folder of a sweep ({path.name} cannot be read).",
            "what `surgseg-train sweep` wrote",
            "Name its --out folder.",
        ) from error
    lines = sorted(read_results(folder), key=lambda line: order.get(line["run"], len(order)))
    done = [line for line in lines if line["status"] == DONE]
    if not done:
        raise DataError(f"No run in {folder} has finished.", "one at least", "Continue the sweep.")
    failed = [line for line in lines if line["status"] == FAILED]
    missing = [run for run in plan["runs"] if run["run"] not in {line["run"] for line in lines}]
    return Comparison(folder, plan, done, failed, missing)


def overall_table(comparison: Comparison) -> Table:
    """Dice, IoU and NSD on the test parts over folds and seeds, and the paired difference to supervised training."""
    base = comparison.baseline
    header = ("labels", "method", "runs", *METRIC_NAMES.values(), "seed spread")
    table = Table(header if base is None else (*header, f"Dice − {base}", "better in"))
    for share, method in comparison.cells():
        lines = comparison.select(method=method, share=share)
        metrics = [str(spread_of(line[metric] for line in lines)) for metric in METRIC_NAMES]
        row = [format_share(share), method, str(len(lines)), *metrics, _format_seed_spread(lines)]
        if base is not None:
            differences = comparison.differences(method, share)
            paired = spread_of(differences)
            row.append(NOTHING if paired is None else paired.format("{:+.3f}"))
            row.append(f"{sum(d > 0 for d in differences)} of {len(differences)}" if paired else NOTHING)
        table.rows.append(tuple(row))
    return table


def fold_table(comparison: Comparison) -> Table:
    """Test Dice by fold, over the seeds."""
    table = Table(("labels", "method", *(name_fold(fold, comparison) for fold in comparison.folds)))
    for share, method in comparison.cells():
        spreads = (
            spread_of(line["dice"] for line in comparison.select(method=method, share=share, fold=fold))
            for fold in comparison.folds
        )
        table.rows.append((format_share(share), method, *(NOTHING if s is None else str(s) for s in spreads)))
    return table


def view_table(comparison: Comparison) -> Table:
    """Test Dice of every view, for the methods that have several."""
    names = list(dict.fromkeys(name for line in comparison.done for name in line["views"]))
    table = Table(("labels", "method", *names))
    for share, method in comparison.cells():
        lines = [line for line in comparison.select(method=method, share=share) if line["views"]]
        if lines:
            spreads = (spread_of(line["views"][n] for line in lines if n in line["views"]) for n in names)
            cells = (NOTHING if spread is None else str(spread) for spread in spreads)
            table.rows.append((format_share(share), method, *cells))
    return table


def cost_table(comparison: Comparison) -> Table:
    """What a run of each method takes. Runs that were stopped and resumed do not count: their time is not whole."""
    table = Table(("method", "runs", "minutes", "pictures/s", "peak memory, MB"))
    for method in comparison.methods:
        lines = [line for line in comparison.select(method=method) if line["resumed_from"] == 0]
        if lines:
            minutes, rate, memory = (
                float(np.mean([line[key] for line in lines])) / unit
                for key, unit in (("seconds", 60), ("pictures_per_s", 1), ("peak_memory_bytes", 1e6))
            )
            table.rows.append((method, str(len(lines)), f"{minutes:.1f}", f"{rate:.1f}", f"{memory:.0f}"))
    return table


def format_share(share: float) -> str:
    """A share of the labels in percent."""
    return f"{100 * share:g} %"


def name_fold(fold: str, comparison: Comparison) -> str:
    """The videos that a fold is tested on, or its own name: where they are many, or none of its runs has finished."""
    lines = comparison.select(fold=fold)
    videos = lines[0]["videos"] if lines else ()
    return ", ".join(videos) if 0 < len(videos) <= NAMED_VIDEOS else Path(fold).stem


def _format_seed_spread(lines: Sequence[Line]) -> str:
    """The deviation between seeds within a fold, as the root of the mean variance over the folds."""
    folds = {line["fold"] for line in lines}
    spreads = [spread_of(line["dice"] for line in lines if line["fold"] == fold) for fold in folds]
    variances = [s.deviation**2 for s in spreads if s is not None and s.deviation is not None]
    return f"{np.sqrt(np.mean(variances)):.3f}" if variances else NOTHING
