"""Checkpoints: everything needed to resume a run or to export its predictor; loaded without running code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from service.contract.model_card import ClassInfo, DataSource, InputSize
from service.errors import DataError
from training.config import Recipe, parse_table
from training.method import Method
from training.methods import build_method

CHECKPOINT_VERSION = 1
# ImageNet's channel means and deviations for pictures scaled to 0..1: what timm's encoders are built for.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
# what torch.load raises for a file that is truncated, foreign, or wants to run code
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    OSError,
    zipfile.BadZipFile,
)


@dataclass
class Checkpoint:
    """A run at one step. `state` holds the method's, optimiser's and random generators' state."""

    recipe: Recipe
    command: str
    commit: str
    split_hash: str
    step: int
    validation_dice: float
    state: dict[str, Any]

    @property
    def network(self) -> str:
        return self.recipe.network.name

    @property
    def method(self) -> str:
        return self.recipe.method_name

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return self.recipe.classes

    @property
    def input_size(self) -> InputSize:
        return self.recipe.input_size

    @property
    def fit(self) -> str:
        return self.recipe.fit

    @property
    def config(self) -> dict[str, Any]:
        return self.recipe.model_dump(mode="json")

    @property
    def recipe_name(self) -> str:
        return self.recipe.name

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def data_sources(self) -> tuple[DataSource, ...]:
        """What the model card says of the data it learned from."""
        used = (*self.recipe.labeled, *self.recipe.unlabeled)
        return tuple(data.card for data in used if data.card is not None)

    def build_method(self) -> Method:
        """The method with the checkpoint's weights."""
        method = build_method(
            self.recipe.method_name, self.recipe.method_options, self.recipe.network, len(self.classes)
        )
        method.load_state_dict(self.state["method"])
        return method

    def build_predictor(self, view: str | None = None) -> nn.Module:
        """The network to export, in eval mode and float32: normalised float `(N, 3, H, W)` to logits `(N, C, H, W)`.

        `view` names one of the method's views, None its predictor; raises DataError when it has no such view. Its
        buffers `mean` and `std` are the channel statistics for pictures scaled to 0..1.
        """
        method = self.build_method()
        if view is not None and view not in method.views:
            raise DataError(
                f"The method {self.method} has no view {view!r}.",
                f"one of {', '.join(method.views)}",
                "Choose one of them with --view, or leave it out.",
            )
        predictor = (method.predictor if view is None else method.views[view]).float().eval()
        predictor.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        predictor.register_buffer("std", torch.tensor(DEVIATION), persistent=False)
        return predictor


def normalise(images_nchw: Tensor) -> Tensor:
    """uint8 `(N, 3, H, W)` to the network's float32 input."""
    mean = torch.tensor(MEAN, device=images_nchw.device).view(1, 3, 1, 1)
    deviation = torch.tensor(DEVIATION, device=images_nchw.device).view(1, 3, 1, 1)
    return (images_nchw.float() / 255 - mean) / deviation


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write whole or not at all: a temporary sibling, then a rename. Raises DataError when the disk refuses."""
    content = {
        "version": CHECKPOINT_VERSION,
        "recipe": checkpoint.recipe.model_dump(mode="json"),
        "command": checkpoint.command,
        "commit": checkpoint.commit,
        "split_hash": checkpoint.split_hash,
        "step": checkpoint.step,
        "validation_dice": checkpoint.validation_dice,
        "state": checkpoint.state,
    }
    partial = path.with_suffix(".partial")
    try:
        torch.save(content, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer tells of a full disk by a RuntimeError
        partial.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written ({str(error).splitlines()[0][:120]}).",
            "a folder to write to, on a disk that is not full",
            "Make room and continue: the checkpoint before this one is whole.",
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint (tensors and plain values only, no code). Raises DataError."""
    remedy = "Name a best.pt or last.pt written by `surgseg-train run`."
    if not path.is_file():
        raise DataError(f"There is no checkpoint {path}.", "a file", remedy)
    try:
        with warnings.catch_warnings(action="ignore"):  # about foreign pickles, which we refuse anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["version"]
    except _UNREADABLE as error:
        raise DataError(
            f"{path} is not a checkpoint ({_explain(error)}).", "a whole checkpoint file", remedy
        ) from error
    if version != CHECKPOINT_VERSION:
        raise DataError(
            f"{path} has checkpoint version {version}.",
            f"version {CHECKPOINT_VERSION}",
            "Use the surgseg that wrote it.",
        )
    recipe = parse_table(Recipe, content["recipe"], str(path))
    fields = {
        key: content[key] for key in ("command", "commit", "split_hash", "step", "validation_dice", "state")
    }
    return Checkpoint(recipe=recipe, **fields)


def _explain(error: Exception) -> str:
    """Why a file could not be read, in a few words; torch has many, most of them on how to read it all the same."""
    if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it would run {forbidden[1]}, which was not done"
    if str(error).startswith("Weights only load failed"):
        return "it holds something other than weights and plain values"
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def start_from(method: Method, path: Path, quiet: bool = False) -> None:
    """Copy the predictor of a checkpoint into every network of a method, where names and shapes agree."""
    weights = load_checkpoint(path).build_predictor().state_dict()
    matched = method.start_from(weights)
    if not matched:
        raise DataError(
            f"No weight of {path} fits this network.", "a checkpoint of the same network", "Check init_from."
        )
    if not quiet:
        print(f"{matched} of {len(weights)} tensors start from {path}")
