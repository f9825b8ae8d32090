"""The runs of `surgseg-export adapt`: a recipe filled with a site's frames, trained and measured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from service.errors import DataError
from training.checkpoint import Checkpoint, load_checkpoint
from training.config import Recipe, load_recipe
from training.data.samples import Sample
from training.device import choose_device
from training.evaluate import Evaluation, evaluate_samples
from training.methods import find_method
from training.prediction import make_predict
from training.trainer import BEST, LAST, Trainer

GIVEN = ("labeled", "unlabeled", "validation", "init_from")
FILES_WRITTEN = 3  # last.pt, best.pt and the one being written
LOG_BYTES = 50 * 2**20


def load_adaptation(recipe: Path, overrides: Sequence[str], steps: int | None) -> Recipe:
    """The recipe as the command line changes it. Raises DataError."""
    for override in overrides:
        if _key(override) in GIVEN:
            raise DataError(
                f"--set {override} names what the command line gives.",
                "keys of the recipe that say how to train",
                "Use --labeled, --unlabeled and --start.",
            )
    return load_recipe(recipe, list(overrides) + ([] if steps is None else [f"steps={steps}"]))


def overridden_keys(overrides: Sequence[str]) -> set[str]:
    """The recipe's keys that `--set KEY=VALUE` and `--set KEY.MORE=VALUE` change."""
    return {_key(override) for override in overrides}


def make_supervised(recipe: Recipe) -> Recipe:
    """The same run without the unlabeled frames; what both methods have as options stays as it is."""
    method = find_method(recipe.method_name)
    options = method.parse_options(recipe.method_options).model_dump()
    shared = find_method("supervised").options_class.model_fields.keys() & options.keys()
    table = {"name": "supervised", **{key: options[key] for key in sorted(shared)}}
    return recipe.model_copy(update={"method": table, "unlabeled": ()})


def train(recipe: Recipe, folder: Path, command: str) -> Checkpoint:
    """Train in `folder` from where the run there stands, or from the beginning; gives the best checkpoint."""
    trainer = Trainer(recipe, folder, command)
    if (folder / LAST).is_file():
        _resume(trainer)
    if trainer.step < recipe.steps:
        _require_room(trainer)
        trainer.run()
    return load_checkpoint(folder / BEST)


def measure(checkpoint: Checkpoint, samples: Sequence[Sample], data: str) -> Evaluation:
    """The checkpoint's predictor on labeled frames."""
    recipe = checkpoint.recipe
    device = choose_device(recipe.device)
    predict = make_predict(checkpoint.build_predictor().to(device), device)
    return evaluate_samples(
        predict,
        samples,
        recipe.input_size,
        recipe.fit,
        classes=len(checkpoint.classes),
        names=[info.name for info in checkpoint.classes[1:]],
        data=data,
    )


def _key(override: str) -> str:
    return override.split("=")[0].split(".")[0].strip()


def _resume(trainer: Trainer) -> None:
    try:
        trainer.resume()
    except DataError as error:
        remedy = f"Name another --work folder, or remove {trainer.folder} to begin again."
        raise DataError(error.found, error.expected, remedy) from error


def _require_room(trainer: Trainer) -> None:
    """Raise DataError when the disk cannot hold the run's files: the method's tensors and two moments a parameter."""
    method = trainer.method
    tensors: list[torch.Tensor] = [*method.state_dict().values(), *method.parameters(), *method.parameters()]
    needed = FILES_WRITTEN * sum(tensor.nbytes for tensor in tensors) + LOG_BYTES
    trainer.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(trainer.folder).free
    if free < needed:
        raise DataError(
            f"The disk of {trainer.folder} has {free / 1e6:.0f} MB left.",
            f"{needed / 1e6:.0f} MB for the run's files",
            "Make room, or name a --work folder on another disk.",
        )
