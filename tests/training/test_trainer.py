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
from training.distributed import Processes
from training.method import Batch
from training.run_log import LOG
from training.trainer import BEST, LAST, Trainer


def losses_of(folder: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [(line["step"], line["cross_entropy"], line["dice"]) for line in lines if line["part"] == "train"]


def test_resuming_equals_never_having_stopped(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, "progressive=[[0.5, 0.7]]", "accumulate=2")
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


def test_accumulated_batches_are_of_different_pictures_and_of_the_step_alone(tmp_path: Path) -> None:
    def batches(*overrides: str) -> TrainingBatches:
        recipe = small_recipe(tmp_path, *overrides)
        return TrainingBatches(recipe, open_pools(recipe.labeled), [])

    single, double = batches("steps=3"), batches("steps=3", "accumulate=2")
    assert (len(single), len(double)) == (3, 6)
    for step in range(3):
        assert torch.equal(single[step].images, double[2 * step].images)
        assert not torch.equal(double[2 * step].images, double[2 * step + 1].images)


def test_processes_share_the_pictures_of_a_batch(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, "batch_size=4", "unlabeled_batch_size=2")
    labeled, unlabeled = open_pools(recipe.labeled), open_pools(recipe.labeled, labeled=False)
    whole = TrainingBatches(recipe, labeled, unlabeled, 2, 2)[1]
    parts = [TrainingBatches(recipe, labeled, unlabeled, 2, 2, Processes(rank, 2))[1] for rank in (0, 1)]
    for field in ("images", "targets", "weak", "known"):
        assert torch.equal(getattr(whole, field), torch.cat([getattr(part, field) for part in parts])), field
    for field in ("strong", "visible"):
        for view, *of_parts in zip(
            getattr(whole, field), *(getattr(part, field) for part in parts), strict=True
        ):
            assert torch.equal(view, torch.cat(of_parts)), field


def test_a_step_follows_the_mean_gradient_of_its_batches(tmp_path: Path) -> None:
    def step(turns: int) -> Trainer:
        options = ("network.options.dropout=0.0", "optimizer.warmup_steps=0", f"accumulate={turns}")
        trainer = Trainer(small_recipe(tmp_path, *options), tmp_path / "run")
        batch = Batch(
            torch.ones(2, 3, 64, 96) * torch.tensor([[[[1.0]]], [[[-1.0]]]]), torch.ones(2, 64, 96).long()
        )
        trainer._train_step(lambda: batch)
        return trainer

    once, twice = step(1).method.named_parameters(), dict(step(2).method.named_parameters())
    for name, parameter in once:
        torch.testing.assert_close(parameter, twice[name], rtol=1e-5, atol=1e-7, msg=name)


def test_each_validation_logs_the_peak_memory(tmp_path: Path) -> None:
    Trainer(small_recipe(tmp_path), tmp_path / "run").run(progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    peaks = [line["peak_memory_bytes"] for line in lines if line["part"] == "validation"]
    assert len(peaks) == 2
    assert 50e6 < peaks[0] <= peaks[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_while_training_is_named(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "training.data.batches.CACHE_LIMIT_BYTES", 0
    )  # every picture is read when it is drawn
    trainer = Trainer(small_recipe(tmp_path, f"workers={workers}"), tmp_path / "run")
    for path in (tmp_path / "data" / "train" / "image").iterdir():
        if path.name != "0.png":  # which is looked at before the first step
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"[1-5]\.png"):
        trainer.run(progress=False)


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
