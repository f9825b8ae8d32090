"""What `surgseg-export adapt` found, as a file to keep and a table to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_export.adapt_data import LabeledFrames
from model_export.adapt_pool import UnlabeledFrames
from training.checkpoint import Checkpoint
from training.data.samples import Sample
from training.evaluate import Evaluation

REPORT = "report.json"


def describe_data(
    labeled: LabeledFrames, learned: list[Sample], held_out: list[Sample], unlabeled: list[UnlabeledFrames]
) -> dict[str, Any]:
    """What was learned from, frame by frame where it was labeled."""
    return {
        "labeled": {
            "data": labeled.config.source,
            "frames": len(labeled.samples),
            "sizes": {f"{width}x{height}": count for (width, height), count in labeled.sizes.items()},
            "instrument_share": labeled.instrument_share,
            "learned": [sample.sample_id for sample in learned],
            "held_out": [sample.sample_id for sample in held_out],
        },
        "unlabeled": [
            {"data": frames.config.source, "frames": frames.frames, "screened": frames.screened}
            for frames in unlabeled
        ],
    }


def describe_run(checkpoint: Checkpoint, folder: Path, evaluation: Evaluation | None) -> dict[str, Any]:
    """One run: how it was trained, which step was chosen, and how it did on the test data."""
    recipe = checkpoint.recipe
    return {
        "method": recipe.method,
        "network": recipe.network.model_dump(mode="json"),
        "steps": recipe.steps,
        "seed": recipe.seed,
        "start": recipe.init_from or "random weights",
        "commit": checkpoint.commit,
        "folder": str(folder),
        "best_step": checkpoint.step,
        "held_out_dice": checkpoint.validation_dice,
        "test": None if evaluation is None else evaluation.to_json(),
    }


def compare(adapted: Evaluation, supervised: Evaluation) -> str:
    """Mean Dice of both by video and overall, side by side."""
    ours, theirs = adapted.to_json(), supervised.to_json()
    rows = [(video, ours["videos"][video], theirs["videos"][video]) for video in ours["videos"]]
    rows.append(("overall", ours["overall"], theirs["overall"]))
    width = max(len(name) for name, _, _ in rows) + 2
    lines = [f"{'Dice':<{width}}{'frames':>7}{'adapted':>12}{'supervised':>12}{'difference':>12}"]
    for name, one, other in rows:
        first, second = one["dice"]["mean"], other["dice"]["mean"]
        lines.append(f"{name:<{width}}{one['frames']:>7}{first:>12.3f}{second:>12.3f}{first - second:>+12.3f}")
    return "\n".join(lines)


def write_report(work: Path, report: dict[str, Any]) -> Path:
    """Write `report.json` in the work folder, whole."""
    path = work / REPORT
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path
