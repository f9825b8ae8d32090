"""The one training loop, for every method: draw, lose, step, validate, save."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from service.errors import DataError
from training.checkpoint import Checkpoint, load_checkpoint, normalise, save_checkpoint, start_from
from training.config import OptimizerConfig, Recipe
from training.data import describe_intensities
from training.data.batches import PictureBatch, Pool, TrainingBatches, gather_batch, make_loader, open_pools
from training.data.labels import load_labels
from training.data.splits import hash_parts
from training.device import (
    choose_device,
    choose_precision,
    peak_memory_bytes,
    share_cores,
    spare_slow_kernels,
)
from training.distributed import ALONE, Processes
from training.evaluate import Evaluation, evaluate_samples
from training.method import Batch, Method, UnlabeledBatch
from training.methods import build_method
from training.prediction import make_predict
from training.run_log import RunLog
from training.schedules import learning_rate_factor
from training.shared_work import share_work

LAST, BEST = "last.pt", "best.pt"


class Trainer:
    """One run in one folder: `last.pt`, `best.pt` (by validation Dice), `log.jsonl` and TensorBoard events.

    Batches, learning rate and picture size are functions of the step, and every other state is in the checkpoint: a
    resumed run continues as if it had never stopped. Several processes give the run of one: all hold the same state,
    share the pictures and the networks' work, and the first of them validates and writes.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, command: str | None = None, processes: Processes = ALONE
    ) -> None:
        processes.check_divides(
            {"batch_size": recipe.batch_size, "unlabeled_batch_size": recipe.unlabeled_batch_size}
        )
        self.recipe = recipe = _name_intensities(recipe)
        self.processes = processes
        self.folder = folder
        self.command = command or shlex.join(["surgseg-train", *sys.argv[1:]])
        self.device = choose_device(recipe.device, processes)
        share_cores(processes)
        quiet = not processes.is_first
        self.precision = choose_precision(recipe.precision, self.device, quiet)
        self.training_pools = open_pools(recipe.labeled, quiet=quiet)
        self.validation_pools = open_pools(recipe.validation, quiet=quiet)
        torch.manual_seed(recipe.seed)
        method = build_method(recipe.method_name, recipe.method_options, recipe.network, len(recipe.classes))
        self.unlabeled_pools = open_unlabeled(recipe, quiet) if method.strong_views else []
        self.split_hash = _hash_pools(self.training_pools, self.unlabeled_pools, self.validation_pools)
        if recipe.init_from:
            start_from(method, Path(recipe.init_from), quiet)
        method.prepare()
        self.method = method.to(self.device, memory_format=torch.channels_last)
        spare_slow_kernels(self.method, self.device)
        self.optimizer = make_optimizer(self.method, recipe.optimizer)
        self.commit = read_commit()  # now: the checkout may move on while this process trains
        self.step = 0
        self.best_dice = -1.0

    def resume(self) -> None:
        """Continue from `last.pt`. Raises DataError when the recipe or the data is not the one it was made with."""
        checkpoint = load_checkpoint(self.folder / LAST)
        if checkpoint.recipe != self.recipe or checkpoint.split_hash != self.split_hash:
            changed = "recipe" if checkpoint.recipe != self.recipe else "data"
            raise DataError(
                f"The {changed} differs from that of {self.folder / LAST}.",
                "the recipe and data the run was started with",
                "Start a new run in another --out folder.",
            )
        self.method.load_state_dict(checkpoint.state["method"])
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        torch.set_rng_state(checkpoint.state["random"])
        if self.device.type == "cuda" and "random_cuda" in checkpoint.state:
            torch.cuda.set_rng_state(checkpoint.state["random_cuda"], self.device)
        self.step = checkpoint.step
        self.best_dice = checkpoint.state["best_dice"]

    def run(self, progress: bool = True, stop_at: int | None = None) -> None:
        """Train to the recipe's last step, or to `stop_at`. Raises DataError when a loss is not finite."""
        with self.processes.together():
            parts = self._open_batches()
        last_step = min(self.recipe.steps, stop_at or self.recipe.steps)
        bar = tqdm(total=self.recipe.steps, initial=self.step, unit="step", disable=not progress)
        with RunLog(self.folder, self.step) if self.processes.is_first else nullcontext() as log, bar:
            while self.step < last_step:
                started = time.perf_counter()
                losses = self._train_step(lambda: self._draw(parts))
                self.step += 1
                bar.update()
                bar.set_postfix(loss=f"{sum(losses.values()):.3f}", dice=f"{self.best_dice:.3f}")
                if log:
                    pictures = self.recipe.batch_size * self.recipe.accumulate
                    rate = pictures / (time.perf_counter() - started)
                    log.write(self.step, "train", {**losses, "pictures_per_s": rate})
                self._validate_and_save(log, last_step)

    def _open_batches(self) -> Iterator[PictureBatch | DataError]:
        """This process's part of every batch from the current step on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        batches = TrainingBatches(
            self.recipe,
            self.training_pools,
            self.unlabeled_pools,
            self.method.labeled_parts,
            self.method.strong_views,
            self.processes,
        )
        batches.load_all()
        return iter(make_loader(batches, self.step * self.recipe.accumulate, self.recipe.workers))

    def _draw(self, parts: Iterator[PictureBatch | DataError]) -> Batch:
        with self.processes.together():
            part = next(parts)
            if isinstance(part, DataError):
                raise part
        return self._to_batch(gather_batch(part, self.processes))

    def _to_batch(self, pictures: PictureBatch) -> Batch:
        def to_input(images: Tensor) -> Tensor:
            moved = images.to(self.device, non_blocking=True)
            return normalise(moved).contiguous(memory_format=torch.channels_last)

        batch = Batch(to_input(pictures.images), pictures.targets.to(self.device, non_blocking=True))
        if pictures.weak is not None and pictures.known is not None and pictures.origins is not None:
            batch.unlabeled = UnlabeledBatch(
                to_input(pictures.weak),
                tuple(to_input(view) for view in pictures.strong),
                tuple(view.to(self.device, non_blocking=True) for view in pictures.visible),
                pictures.known.to(self.device, non_blocking=True),
                pictures.origins.to(self.device, non_blocking=True),
            )
        return batch

    def _train_step(self, draw: Callable[[], Batch]) -> dict[str, float]:
        """One step of the optimiser on the mean loss of `accumulate` batches; gives every term's mean."""
        turns, values = self.recipe.accumulate, dict[str, float]()
        self._set_learning_rate()
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(turns):
            batch = draw()
            with self._autocast(), share_work(self.method.segmenters, self.processes):
                losses = self.method.losses(batch, self.step)
            for name, loss in losses.items():
                values[name] = values.get(name, 0.0) + float(loss.detach()) / turns
            _check_finite(values, self.step, self.folder)
            (torch.stack(list(losses.values())).sum() / turns).backward()
        self.processes.average_gradients(self.method.parameters())
        nn.utils.clip_grad_norm_(self.method.parameters(), self.recipe.optimizer.gradient_clip)
        self.optimizer.step()
        self.method.after_step(self.step)
        return values

    def _set_learning_rate(self) -> None:
        config = self.recipe.optimizer
        factor = learning_rate_factor(self.step, self.recipe.steps, config.warmup_steps, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor

    def _validate_and_save(self, log: RunLog | None, last_step: int) -> None:
        """What is due at this step; the first process does it while the others wait."""
        is_due = self.step % self.recipe.validate_every == 0 or self.step == self.recipe.steps
        if not (is_due or self.step == last_step or self.step % self.recipe.save_every == 0):
            return
        with self.processes.together():
            if log is None:
                return
            if is_due:
                dice = self.validate().mean_dice
                memory = peak_memory_bytes(self.device)
                log.write(self.step, "validation", {"dice": dice, "peak_memory_bytes": memory})
                if dice > self.best_dice:
                    self.best_dice = dice
                    save_checkpoint(self._checkpoint(dice), self.folder / BEST)
            save_checkpoint(self._checkpoint(self.best_dice), self.folder / LAST)

    def validate(self) -> Evaluation:
        """The predictor on the validation data, never on a test part."""
        samples = [sample for pool in self.validation_pools for sample in pool.samples]
        predict = make_predict(self.method.predictor, self.device)
        size, fit = self.recipe.input_size, self.recipe.fit
        return evaluate_samples(
            predict, samples, size, fit, classes=len(self.recipe.classes), surfaces=False, progress=False
        )

    def _autocast(self) -> torch.autocast:
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _checkpoint(self, dice: float) -> Checkpoint:
        state: dict[str, Any] = {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "best_dice": self.best_dice,
        }
        if self.device.type == "cuda":  # where dropout draws
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return Checkpoint(self.recipe, self.command, self.commit, self.split_hash, self.step, dice, state)


def make_optimizer(method: Method, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Every parameter that wants a gradient; one-dimensional ones (biases, BatchNorm) without weight decay."""
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
    }
    return kinds[config.name](
        groups, lr=config.learning_rate, fused=True
    )  # one pass over memory, not a dozen


def read_commit() -> str:
    """The commit of the code that trains, with `+changes` when the tree differs from it; empty outside a checkout."""
    root = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "."], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}+changes" if changed else commit


def _check_finite(losses: dict[str, float], step: int, folder: Path) -> None:
    for name, value in losses.items():
        if not math.isfinite(value):
            raise DataError(
                f"The loss term {name!r} is {value} at step {step}.",
                "a finite number",
                f"Lower optimizer.learning_rate and resume from {folder / LAST}.",
            )


def _name_intensities(recipe: Recipe) -> Recipe:
    """The recipe, saying what its grey levels stand for: where it does not itself, what the readers say."""
    texts = dict.fromkeys(describe_intensities(data.source) for data in recipe.labeled)
    text = recipe.intensities or "; ".join(filter(None, texts))
    return recipe.model_copy(update={"intensities": text})


def open_unlabeled(recipe: Recipe, quiet: bool = False) -> list[Pool]:
    """The unlabeled data of a recipe. Raises DataError when it names none."""
    if not recipe.unlabeled:
        raise DataError(
            f"The recipe {recipe.name} has no unlabeled data.",
            f"[[unlabeled]] tables, which {recipe.method_name} learns from",
            'Add one, or use method.name = "supervised".',
        )
    return open_pools(recipe.unlabeled, labeled=False, quiet=quiet)


def _hash_pools(training: list[Pool], unlabeled: list[Pool], validation: list[Pool]) -> str:
    parts = {"train": training, "validation": validation} | ({"unlabeled": unlabeled} if unlabeled else {})
    labels = {pool.config.labels for pools in parts.values() for pool in pools if pool.config.labels}
    digests = [load_labels(name).digest for name in sorted(labels)]
    return hash_parts(
        {part: [s for pool in pools for s in pool.samples] for part, pools in parts.items()}, digests
    )
