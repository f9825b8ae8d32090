"""What the tests of data-parallel training run under torchrun: `two_processes.py TASK FOLDER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from service.errors import DataError
from tests.training.small_batches import NETWORK, make_batch
from tests.training.small_runs import small_recipe
from training.__main__ import main
from training.config import Recipe
from training.data.batches import TrainingBatches
from training.distributed import Processes, join_processes
from training.method import Method
from training.methods import METHODS, build_method
from training.shared_work import share_work
from training.trainer import Trainer

CURVES = {
    "supervised": ("progressive=[[0.5, 0.7]]", "accumulate=2"),
    "mean_teacher": (),
    "min_max_similarity": (),
}
STOP_AT = 2
# so that its contrast counts while all weights are random
OPTIONS = {"self_ensembling_contrastive": {"confidence": 0.0, "keys_from": "both", "consistency_weight": 1.0}}


def recipe_of(folder: Path, method: str) -> Recipe:
    """A run of that method on the tiny data. Small steps: Adam's first ones are as large for rounding errors as for
    gradients."""
    overrides = (
        f"method.name={method}",
        "batch_size=4",
        "unlabeled_batch_size=2",
        "steps=4",
        "validate_every=2",
        *CURVES[method],
    )
    network = ('network.options.encoder="test_efficientnet"', "optimizer.learning_rate=1e-4")
    unlabeled = f'unlabeled=[{{source="folder:{folder / "data"}"}}]'
    return small_recipe(folder, *overrides, *network, unlabeled)


def gradients_of(name: str, processes: Processes) -> dict[str, torch.Tensor]:
    """Losses, gradients and buffers of one float64 step: four labeled pictures, two unlabeled; dropout is on."""
    torch.manual_seed(0)
    network = NETWORK.model_copy(update={"options": {**NETWORK.options, "dropout": 0.3}})
    method: Method = build_method(name, OPTIONS.get(name, {}), network, 3).train()
    for segmenter in method.segmenters:  # not the heads, whose input every loss makes float32
        segmenter.double()
    batch = make_batch(method, classes=3)
    batch.images_nchw = batch.images_nchw.double()
    assert batch.unlabeled is not None
    batch.unlabeled.weak_nchw = batch.unlabeled.weak_nchw.double()
    batch.unlabeled.strong_nchw = tuple(view.double() for view in batch.unlabeled.strong_nchw)
    with share_work(method.segmenters, processes):
        losses = method.losses(batch, 100)
    torch.stack(list(losses.values())).sum().backward()
    processes.average_gradients(method.parameters())
    gradients = {f"gradient of {n}": p.grad for n, p in method.named_parameters() if p.grad is not None}
    return {**losses, **gradients, **dict(method.named_buffers()), "random state": torch.get_rng_state()}


def compare(folder: Path) -> None:
    """Every method's gradients; three runs whole, and one that stops and is resumed."""
    with join_processes() as processes:
        for name in METHODS:
            found = gradients_of(name, processes)
            torch.save({k: v.detach() for k, v in found.items()}, folder / f"{name}-{processes.rank}.pt")
        for name in CURVES:
            Trainer(recipe_of(folder, name), folder / name, processes=processes).run(progress=False)
        stopped = folder / "stopped"
        Trainer(recipe_of(folder, "mean_teacher"), stopped, processes=processes).run(False, STOP_AT)
        torch.manual_seed(99)
        resumed = Trainer(recipe_of(folder, "mean_teacher"), stopped, processes=processes)
        resumed.resume()
        resumed.run(progress=False)


def lose_a_file(folder: Path) -> int:
    """The command itself, where the second process cannot read a picture at its second step."""
    make_batch_of = TrainingBatches._make_batch

    def fail(batches: TrainingBatches, item: int) -> object:
        if item == 1 and os.environ["RANK"] == "1":
            raise DataError("7.png is cut off.", "a whole picture", "Copy it again.")
        return make_batch_of(batches, item)

    TrainingBatches._make_batch = fail
    return main(["run", str(folder / "bars.toml"), "--set", "workers=1", "--out", str(folder / "broken")])


def crash(folder: Path) -> int:
    """The command itself, where the second process dies at its second step."""
    make_batch_of = TrainingBatches._make_batch

    def die(batches: TrainingBatches, item: int) -> object:
        if item == 1 and os.environ["RANK"] == "1":
            os._exit(17)
        return make_batch_of(batches, item)

    TrainingBatches._make_batch = die
    return main(["run", str(folder / "bars.toml"), "--out", str(folder / "crashed")])


if __name__ == "__main__":
    tasks = {"compare": compare, "lose_a_file": lose_a_file, "crash": crash}
    sys.exit(tasks[sys.argv[1]](Path(sys.argv[2])))
