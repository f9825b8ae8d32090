"""The one training loop, for every method: draw, lose, step, validate, save."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from service.errors import DataError
from training.checkpoint import Checkpoint, load_checkpoint, normalise, save_checkpoint
from training.config import OptimizerConfig, Recipe
from training.data.batches import PictureBatch, Pool, TrainingBatches, make_loader, open_pools
from training.data.splits import hash_parts
from training.evaluate import Evaluation, Predict, evaluate_samples
from training.method import Batch, Method, UnlabeledBatch
from training.methods import build_method
from training.schedules import learning_rate_factor

LAST, BEST, LOG = "last.pt", "best.pt", "log.jsonl"


class Trainer:
    """One run in one folder: `last.pt`, `best.pt` (by validation Dice), `log.jsonl` and TensorBoard events.

    Batches, learning rate and picture size are functions of the step, and every other state is in the checkpoint: a
    resumed run continues as if it had never stopped.
    """

    def __init__(self, recipe: Recipe, folder: Path, command: str | None = None) -> None:
        self.recipe = recipe
        self.folder = folder
        self.command = command or shlex.join(["surgseg-train", *sys.argv[1:]])
        self.device = choose_device(recipe.device)
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # torch's own default leaves hyper-threads idle
        self.training_pools = open_pools(recipe.labeled)
        self.validation_pools = open_pools(recipe.validation)
        torch.manual_seed(recipe.seed)
        method = build_method(recipe.method_name, recipe.method_options, recipe.network, len(recipe.classes))
        self.unlabeled_pools = open_unlabeled(recipe) if method.strong_views else []
        self.split_hash = _hash_pools(self.training_pools, self.unlabeled_pools, self.validation_pools)
        if recipe.init_from:
            start_from(method, Path(recipe.init_from))
        self.method = method.to(self.device, memory_format=torch.channels_last)
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
        self.step = checkpoint.step
        self.best_dice = checkpoint.state["best_dice"]

    def run(self, progress: bool = True, stop_at: int | None = None) -> None:
        """Train to the recipe's last step, or to `stop_at`. Raises DataError when a loss is not finite."""
        self.folder.mkdir(parents=True, exist_ok=True)
        parts, strong_views = self.method.labeled_parts, self.method.strong_views
        batches = TrainingBatches(self.recipe, self.training_pools, self.unlabeled_pools, parts, strong_views)
        batches.load_all()
        last_step = min(self.recipe.steps, stop_at or self.recipe.steps)
        bar = tqdm(total=self.recipe.steps, initial=self.step, unit="step", disable=not progress)
        with SummaryWriter(str(self.folder), purge_step=self.step) as board, bar:
            for pictures in make_loader(batches, self.step, self.recipe.workers):
                if self.step >= last_step:
                    break
                started = time.perf_counter()
                losses = self._train_step(self._to_batch(pictures))
                self.step += 1
                bar.update()
                bar.set_postfix(loss=f"{sum(losses.values()):.3f}", dice=f"{self.best_dice:.3f}")
                seconds = time.perf_counter() - started
                self._log(board, {**losses, "pictures_per_s": self.recipe.batch_size / seconds}, "train")
                self._validate_and_save(board, last_step)

    def _to_batch(self, pictures: PictureBatch) -> Batch:
        def to_input(images: Tensor) -> Tensor:
            moved = images.to(self.device, non_blocking=True)
            return normalise(moved).contiguous(memory_format=torch.channels_last)

        batch = Batch(to_input(pictures.images), pictures.targets.to(self.device, non_blocking=True))
        if pictures.weak is not None and pictures.known is not None:
            batch.unlabeled = UnlabeledBatch(
                to_input(pictures.weak),
                tuple(to_input(view) for view in pictures.strong),
                tuple(view.to(self.device, non_blocking=True) for view in pictures.visible),
                pictures.known.to(self.device, non_blocking=True),
            )
        return batch

    def _train_step(self, batch: Batch) -> dict[str, float]:
        config = self.recipe.optimizer
        factor = learning_rate_factor(self.step, self.recipe.steps, config.warmup_steps, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        self.method.train()
        with self._autocast():
            losses = self.method.losses(batch, self.step)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        _check_finite(values, self.step, self.folder)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.method.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.method.after_step(self.step)
        return values

    def _validate_and_save(self, board: SummaryWriter, last_step: int) -> None:
        is_last = self.step == last_step
        due = self.step % self.recipe.validate_every == 0 or self.step == self.recipe.steps
        if due:
            evaluation = self.validate()
            self._log(board, {"dice": evaluation.mean_dice}, "validation")
            if evaluation.mean_dice > self.best_dice:
                self.best_dice = evaluation.mean_dice
                save_checkpoint(self._checkpoint(evaluation.mean_dice), self.folder / BEST)
        if due or is_last or self.step % self.recipe.save_every == 0:
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
        enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _checkpoint(self, dice: float) -> Checkpoint:
        state: dict[str, Any] = {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "best_dice": self.best_dice,
        }
        return Checkpoint(self.recipe, self.command, self.commit, self.split_hash, self.step, dice, state)

    def _log(self, board: SummaryWriter, values: dict[str, float], part: str) -> None:
        for name, value in values.items():
            board.add_scalar(f"{part}/{name}", value, self.step)
        line = {"step": self.step, "part": part, **values}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def make_predict(predictor: nn.Module, device: torch.device) -> Predict:
    """A function from uint8 RGB `(N, H, W, 3)` to uint8 class ids `(N, H, W)`, in eval mode and float32."""

    @torch.inference_mode()
    def predict(images_nhwc: np.ndarray) -> np.ndarray:
        was_training = predictor.training
        predictor.eval()
        images = normalise(torch.from_numpy(images_nhwc).to(device).permute(0, 3, 1, 2))
        masks = predictor(images).argmax(dim=1).to(torch.uint8).cpu().numpy()
        predictor.train(was_training)
        return masks

    return predict


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
    return kinds[config.name](groups, lr=config.learning_rate)


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises DataError when CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError('The recipe says device = "cuda".', "an NVIDIA GPU", 'Use device = "auto" or "cpu".')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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


def open_unlabeled(recipe: Recipe) -> list[Pool]:
    """The unlabeled data of a recipe. Raises DataError when it names none."""
    if not recipe.unlabeled:
        raise DataError(
            f"The recipe {recipe.name} has no unlabeled data.",
            f"[[unlabeled]] tables, which {recipe.method_name} learns from",
            'Add one, or use method.name = "supervised".',
        )
    return open_pools(recipe.unlabeled, labeled=False)


def start_from(method: Method, path: Path) -> None:
    """Copy the predictor of a checkpoint into every network of a method, where names and shapes agree."""
    weights = load_checkpoint(path).build_predictor().state_dict()
    matched = method.start_from(weights)
    if not matched:
        raise DataError(
            f"No weight of {path} fits this network.", "a checkpoint of the same network", "Check init_from."
        )
    print(f"{matched} of {len(weights)} tensors start from {path}")


def _hash_pools(training: list[Pool], unlabeled: list[Pool], validation: list[Pool]) -> str:
    parts = {"train": training, "validation": validation} | ({"unlabeled": unlabeled} if unlabeled else {})
    return hash_parts({part: [s for pool in pools for s in pool.samples] for part, pools in parts.items()})
