"""What `surgseg-export adapt` found, as a file to keep and a table to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.checkpoint import Checkpoint
from training.evaluate import Evaluation


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


def compare(adapted: dict[str, Any], supervised: dict[str, Any]) -> str:
    """Mean Dice of two evaluations (Evaluation.to_json) by video and overall, side by side."""
    rows = [(video, figures, supervised["videos"][video]) for video, figures in adapted["videos"].items()]
    rows.append(("overall", adapted["overall"], supervised["overall"]))
    width = max(len(name) for name, _, _ in rows) + 2
    lines = [f"{'Dice':<{width}}{'frames':>7}{'adapted':>12}{'supervised':>12}{'difference':>12}"]
    for name, one, other in rows:
        first, second = one["dice"]["mean"], other["dice"]["mean"]
        lines.append(
            f"{name:<{width}}{one['frames']:>7}{first:>12.3f}{second:>12.3f}{first - second:>+12.3f}"
        )
    return "\n".join(lines)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
