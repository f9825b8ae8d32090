from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from service.errors import DataError
from tests.training.small_batches import NETWORK, make_batch
from tests.training.small_runs import TEACHER_TABLE, small_recipe, write_teacher
from training.checkpoint import load_checkpoint
from training.config import Recipe
from training.methods import build_method
from training.methods.distillation import Distillation
from training.trainer import LAST, Trainer


def build(**options: object) -> Distillation:
    torch.manual_seed(0)
    method = build_method("distillation", options, NETWORK, 2)
    assert isinstance(method, Distillation)
    return method


def recipe_with(folder: Path, teacher: str, table: str = TEACHER_TABLE) -> Recipe:
    return small_recipe(
        folder,
        f'method={{ name = "distillation", teacher = {table}, teacher_from = "{teacher}" }}',
        f'unlabeled=[{{ source = "folder:{folder / "data"}" }}]',
        "unlabeled_batch_size=2",
        "steps=2",
        "validate_every=2",
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_term_is_the_papers_over_pixels_that_are_seen_and_sure(temperature: float) -> None:
    method = build()
    batch = make_batch(method)
    assert batch.unlabeled is not None
    sure = method.teacher(batch.unlabeled.weak_nchw).softmax(dim=1).amax(dim=1).median().item()
    method = build(temperature=temperature, threshold=sure, distillation_weight=0.5, average_decay=0)
    method.eval()
    with torch.no_grad():
        found = float(method.losses(batch, 0)["distillation"])
        student = method.network(batch.unlabeled.strong_nchw[0]).double().numpy()
        teacher = method.teacher.network(batch.unlabeled.weak_nchw).double().numpy()
    visible = batch.unlabeled.visible_nhw[0].numpy()
    total, count = 0.0, 0
    for n, y, x in np.ndindex(*visible.shape):
        pixel = (slice(n, n + 1), slice(None), y, x)
        if not visible[n, y, x] or softmax(teacher[pixel]).max() < sure:
            continue
        taught, said = softmax(teacher[pixel] / temperature), softmax(student[pixel] / temperature)
        total -= float((taught * np.log(said)).sum())
        count += 1
    assert 0 < count < visible.sum()
    assert found == pytest.approx(0.5 * temperature**2 * total / count, rel=1e-4)


def test_the_teacher_learns_nothing_and_stays_in_eval_mode() -> None:
    method = build().train()
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    sum(method.losses(make_batch(method), 0).values()).backward()
    assert not any(module.training for module in method.teacher.modules())
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_run_reads_its_teacher_and_its_checkpoint_does_not_need_it(tmp_path: Path) -> None:
    path = write_teacher(tmp_path)
    expected = load_checkpoint(path).build_predictor().state_dict()
    trainer = Trainer(recipe_with(tmp_path, str(path)), tmp_path / "student")
    trainer.run(progress=False)
    shutil.rmtree(path.parent)
    restored = load_checkpoint(tmp_path / "student" / LAST).build_method()
    assert isinstance(restored, Distillation)
    for name, value in restored.teacher.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert restored.predictor is not restored.teacher.network
    log = (tmp_path / "student" / "log.jsonl").read_text()
    assert '"distillation"' in log


@pytest.mark.parametrize(
    ("teacher", "table", "message"),
    [
        ("", TEACHER_TABLE, "names no teacher"),
        ("NOWHERE.pt", TEACHER_TABLE, "NOWHERE.pt"),
        ("TEACHER", '{ name = "edge", options = { width = 8 } }', r"Repeat its \[network\] table"),
    ],
    ids=["none", "missing", "another network"],
)
def test_a_teacher_that_is_not_right_is_named(tmp_path: Path, teacher: str, table: str, message: str) -> None:
    path = str(write_teacher(tmp_path)) if teacher == "TEACHER" else teacher
    with pytest.raises(DataError, match=message):
        Trainer(recipe_with(tmp_path, path, table), tmp_path / "student")
