"""One run of a sweep: train or resume, choose on validation, measure on the fold's test part, one line of results."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import load_checkpoint
from training.data.batches import Pool, open_pools
from training.device import peak_memory_bytes
from training.evaluate import METRICS, Evaluation, evaluate_samples
from training.prediction import make_predict
from training.sweep_config import PlannedRun
from training.trainer import BEST, LAST, Trainer
from training.volume_scores import VOLUMES, describe_volumes

DONE, FAILED = "done", "failed"
TEST, FRAMES = "test.json", "frames"
# Pictures kept of each end of a run's Dice: enough to see what goes wrong, little enough for hundreds of runs.
KEPT_PICTURES = 3


def make_run(run: PlannedRun, folder: Path) -> dict[str, Any]:
    """Train in `folder`, from `last.pt` where there is one, and measure `best.pt`; gives the line of results.

    Leaves `test.json` (every frame's figures) and `frames/` (the worst and the best frames as pictures) beside the run.
    Raises DataError, or whatever training raises. Wants a process of its own: the peak memory is the process's.
    """
    trainer = Trainer(run.recipe, folder)
    if (folder / LAST).exists():
        trainer.resume()
    resumed_from, started = trainer.step, time.perf_counter()
    trainer.run(progress=False)
    training_s = time.perf_counter() - started
    measured = measure_best(run, folder, trainer.device)
    pictures = run.recipe.batch_size + (run.recipe.unlabeled_batch_size if trainer.unlabeled_pools else 0)
    return {
        **identify(run),
        "status": DONE,
        "steps": run.recipe.steps,
        "labeled_frames": _count(trainer.training_pools),
        "unlabeled_frames": _count(trainer.unlabeled_pools),
        **measured,
        "seconds": time.perf_counter() - started,
        "resumed_from": resumed_from,
        "pictures_per_s": (run.recipe.steps - resumed_from) * pictures / training_s,
        "peak_memory_bytes": peak_memory_bytes(trainer.device),
        "machine": describe_machine(trainer.device),
    }


def describe_failure(run: PlannedRun, reason: str) -> dict[str, Any]:
    """The line of a run that did not end as it should; of the reason the first line."""
    return {
        **identify(run),
        "status": FAILED,
        "error": (reason.strip().splitlines() or ["no reason given"])[0],
    }


def identify(run: PlannedRun) -> dict[str, Any]:
    """What every line of results starts with."""
    return {
        "run": run.slug,
        "method": run.method,
        "share": run.share,
        "fold": run.fold,
        "seed": run.seed,
        "recipe_hash": run.recipe_hash,
    }


def measure_best(run: PlannedRun, folder: Path, device: torch.device) -> dict[str, Any]:
    """Measure the predictor of `best.pt`, and every other view by its Dice, on the test part of the run's fold."""
    checkpoint = load_checkpoint(folder / BEST)
    method = checkpoint.build_method().float().to(device)
    samples = [sample for pool in open_pools(run.test_data) for sample in pool.samples]

    names = [info.name for info in run.recipe.classes[1:]]

    def measure(network: torch.nn.Module, **options: Any) -> Evaluation:
        predict = make_predict(network, device)
        size, fit, classes = run.recipe.input_size, run.recipe.fit, len(run.recipe.classes)
        return evaluate_samples(
            predict, samples, size, fit, classes=classes, names=names, progress=False, **options
        )

    pictures = folder / FRAMES
    for picture in pictures.glob("*"):  # of a run that was stopped while it was measured
        picture.unlink()
    figures = measure(method.predictor, data=run.fold, overlays=pictures).to_json()
    write_whole(folder / TEST, json.dumps(figures, indent=1) + "\n")
    for picture in sorted(pictures.iterdir())[KEPT_PICTURES:-KEPT_PICTURES]:
        picture.unlink()
    views = {
        name: figures["overall"]["dice"]["mean"]
        if view is method.predictor
        else measure(view, surfaces=False).mean_dice
        for name, view in method.views.items()
    }
    return {
        "best_step": checkpoint.step,
        "validation_dice": checkpoint.validation_dice,
        **_means(figures["overall"]),
        "videos": {video: _means(summary) for video, summary in figures["videos"].items()},
        **({VOLUMES: describe_volumes(figures[VOLUMES])} if VOLUMES in figures else {}),
        "views": views if len(views) > 1 else {},
    }


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, whenever the process is killed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def describe_machine(device: torch.device) -> str:
    """The device and the library that trained, for the report."""
    cores = len(os.sched_getaffinity(0))
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        models = [
            line.partition(":")[2].strip()
            for line in information.splitlines()
            if line.startswith("model name")
        ]
        where = f"{cores} × {models[0] if models else 'processor core'}"
    return f"{where}, torch {torch.__version__}"


def _means(summary: dict[str, Any]) -> dict[str, Any]:
    return {"frames": summary["frames"], **{metric: summary[metric]["mean"] for metric in METRICS}}


def _count(pools: list[Pool]) -> int:
    return sum(len(pool.samples) for pool in pools)
