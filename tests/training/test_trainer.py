"""The training loop: resuming equals never stopping, best by validation, and clear ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from service.errors import DataError
from tests.training.small_runs import small_recipe
from training.checkpoint import load_checkpoint
from training.data.batches import TrainingBatches, make_loader, open_pools
from training.run_log import LOG
from training.trainer import BEST, LAST, Trainer


def losses_of(folder: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [(line["step"], line["cross_entropy"], line["dice"]) for line in lines if line["part"] == "train"]


def test_resuming_equals_never_having_stopped(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, "progressive=[[0.5, 0.7]]")
    Trainer(recipe, tmp_path / "whole").run(progress=False)

    Trainer(recipe, tmp_path / "parts").run(progress=False, stop_at=3)
    torch.manual_seed(99)  # what another process would have
    resumed = Trainer(recipe, tmp_path / "parts")
    resumed.resume()
    assert resumed.step == 3
    resumed.run(progress=False)

    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "parts")
    whole, parts = (load_checkpoint(tmp_path / run / LAST).state for run in ("whole", "parts"))
    assert whole["best_dice"] == parts["best_dice"]
    for name, value in whole["method"].items():
        torch.testing.assert_close(value, parts["method"][name], rtol=0, atol=0, msg=name)


def test_batches_depend_on_the_step_alone_not_on_worker_processes(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    labeled, unlabeled = open_pools(recipe.labeled), open_pools(recipe.labeled, labeled=False)
    batches = TrainingBatches(recipe, labeled, unlabeled, parts=2, strong_views=2)
    alone = list(make_loader(batches, 2, workers=0))
    with_worker = list(make_loader(batches, 2, workers=1))
    assert len(alone) == len(with_worker) == recipe.steps - 2
    for one, other in zip(alone, with_worker, strict=True):
        torch.testing.assert_close(tuple(one), tuple(other), rtol=0, atol=0)
    assert not torch.equal(alone[0].images, alone[1].images)


def test_the_best_checkpoint_is_that_of_the_highest_validation_dice(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, "steps=9", "validate_every=1")
    Trainer(recipe, tmp_path / "run").run(progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    dices = [line["dice"] for line in lines if line["part"] == "validation"]
    best = load_checkpoint(tmp_path / "run" / BEST)
    assert len(dices) == 9
    assert best.validation_dice == max(dices)
    assert best.step == 1 + dices.index(max(dices))


def test_another_recipe_or_other_data_cannot_be_resumed(tmp_path: Path) -> None:
    Trainer(small_recipe(tmp_path), tmp_path / "run").run(progress=False, stop_at=2)
    with pytest.raises(DataError, match="recipe differs"):
        Trainer(small_recipe(tmp_path, "optimizer.learning_rate=1e-4"), tmp_path / "run").resume()
    for part in ("image", "mask"):
        (tmp_path / "data" / "train" / part / "0.png").unlink()
    with pytest.raises(DataError, match="data differs"):
        Trainer(small_recipe(tmp_path), tmp_path / "run").resume()


def test_a_loss_that_is_not_finite_names_its_term_and_keeps_the_run(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    Trainer(recipe, tmp_path / "run").run(progress=False, stop_at=2)
    broken = Trainer(recipe, tmp_path / "run")
    broken.resume()
    with torch.no_grad():
        next(broken.method.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="'cross_entropy' is nan at step 2"):
        broken.run(progress=False)
    assert load_checkpoint(tmp_path / "run" / LAST).step == 2


def test_unlabeled_frames_cannot_be_learned_from_by_labels(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    for path in (tmp_path / "data" / "train" / "mask").iterdir():
        path.unlink()
    (tmp_path / "data" / "train" / "mask").rmdir()
    with pytest.raises(DataError, match="unlabeled"):
        Trainer(recipe, tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NVIDIA GPU"):
        Trainer(small_recipe(tmp_path, 'device="cuda"'), tmp_path / "run")
