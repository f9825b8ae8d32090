"""Mean teacher: what the average teaches, where, and that the student alone learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from service.errors import DataError
from tests.training.small_batches import NETWORK, make_batch
from training.losses.consistency import soft_cross_entropy, squared_difference
from training.losses.segmentation import IGNORED, cross_entropy, soft_dice
from training.method import Batch, UnlabeledBatch
from training.methods import build_method
from training.methods.mean_teacher import MeanTeacher


def build(**options: object) -> MeanTeacher:
    torch.manual_seed(0)
    method = build_method("mean_teacher", {"ramp_steps": 0, **options}, NETWORK, 2)
    assert isinstance(method, MeanTeacher)
    return method.train()


def unlabeled_of(batch: Batch) -> UnlabeledBatch:
    assert batch.unlabeled is not None
    return batch.unlabeled


def student_logits(method: MeanTeacher, batch: Batch) -> tuple[Tensor, Tensor]:
    logits = method.network(torch.cat([batch.images_nchw, unlabeled_of(batch).strong_nchw[0]]))
    return logits[: len(batch.images_nchw)], logits[len(batch.images_nchw) :]


def random_case(classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits, taught = torch.randn(2, 2, classes, 3, 4, generator=generator)
    return logits, taught.softmax(dim=1), torch.rand(2, 3, 4, generator=generator) > 0.4


@pytest.mark.parametrize("classes", [2, 4])
def test_consistencies_are_the_mean_over_counted_pixels(classes: int) -> None:
    logits, taught, counted = random_case(classes)
    squared = entropy = 0.0
    count = 0
    for n, y, x in counted.nonzero().tolist():
        exponentials = [math.exp(value) for value in logits[n, :, y, x].tolist()]
        count += 1
        for c in range(classes):
            p, q = exponentials[c] / sum(exponentials), float(taught[n, c, y, x])
            squared += (p - q) ** 2 / classes
            entropy -= q * math.log(p)
    assert float(squared_difference(logits, taught, counted)) == pytest.approx(squared / count, rel=1e-5)
    assert float(soft_cross_entropy(logits, taught, counted)) == pytest.approx(entropy / count, rel=1e-5)


@pytest.mark.parametrize("consistency", [squared_difference, soft_cross_entropy])
def test_without_a_counted_pixel_the_consistency_is_zero(consistency: object) -> None:
    logits, taught, counted = random_case(2)
    assert float(consistency(logits, taught, torch.zeros_like(counted))) == 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "consistency"), [("squared", squared_difference), ("cross_entropy", soft_cross_entropy)]
)
def test_the_teacher_on_the_weak_view_teaches_the_student_on_the_visible_strong_one(
    name: str, consistency: object
) -> None:
    method = build(consistency=name, consistency_weight=3.0)
    batch = make_batch(method)
    with torch.no_grad():
        next(method.teacher.average.parameters()).mul_(1.5)  # a teacher unlike its student
        taught = method.teacher.average(unlabeled_of(batch).weak_nchw).softmax(dim=1)
    losses = method.losses(batch, 0)
    _, strong = student_logits(method, batch)
    expected = 3 * consistency(strong, taught, unlabeled_of(batch).visible_nhw[0])  # type: ignore[operator]
    torch.testing.assert_close(losses["consistency"], expected)
    assert not unlabeled_of(batch).visible_nhw[0].all()


def test_pixels_of_which_the_teacher_is_unsure_do_not_count() -> None:
    method = build(threshold=0.55)
    batch = make_batch(method)
    with torch.no_grad():
        taught = method.teacher.average(unlabeled_of(batch).weak_nchw).softmax(dim=1)
    counted = unlabeled_of(batch).visible_nhw[0] & (taught.amax(dim=1) >= 0.55)
    assert counted.any() and not counted.all()
    losses = method.losses(batch, 0)
    _, strong = student_logits(method, batch)
    torch.testing.assert_close(losses["consistency"], soft_cross_entropy(strong, taught, counted))


def test_a_pasted_instrument_is_taught_for_certain() -> None:
    method = build()
    batch = make_batch(method)
    unlabeled = unlabeled_of(batch)
    unlabeled.known_nhw[0, 40:50] = 1
    with torch.no_grad():
        taught = method.teacher.average(unlabeled.weak_nchw).softmax(dim=1)
        taught[0, 0, 40:50], taught[0, 1, 40:50] = 0.0, 1.0
    losses = method.losses(batch, 0)
    _, strong = student_logits(method, batch)
    expected = soft_cross_entropy(strong, taught, unlabeled.visible_nhw[0])
    torch.testing.assert_close(losses["consistency"], expected)


def test_a_background_label_that_the_teacher_doubts_is_left_out() -> None:
    method = build(doubt=0.5)
    batch = make_batch(method)
    with torch.no_grad():
        sure = method.teacher.average(batch.images_nchw).softmax(dim=1)[:, 1] >= 0.5
    doubted = sure & (batch.targets_nhw == 0)
    assert doubted.any() and (sure & (batch.targets_nhw == 1)).any()
    targets = batch.targets_nhw.clone()
    targets[doubted] = IGNORED
    losses = method.losses(batch, 0)
    labeled, _ = student_logits(method, batch)
    torch.testing.assert_close(losses["cross_entropy"], cross_entropy(labeled, targets))
    torch.testing.assert_close(losses["dice"], soft_dice(labeled, targets))


def test_the_consistency_is_ramped_up() -> None:
    method = build(ramp_steps=10)
    batch = make_batch(method)
    early, late = (method.losses(batch, step)["consistency"].detach() for step in (0, 10))
    assert float(early / late) == pytest.approx(math.exp(-5), rel=1e-3)


def test_the_teacher_predicts_and_follows_the_student() -> None:
    method = build(average_decay=0.5)
    assert method.predictor is method.teacher.average
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.fill_(1.0)
    for step in range(60):
        method.after_step(step)
    assert all(torch.allclose(p, torch.ones_like(p), atol=1e-3) for p in method.predictor.parameters())


def test_a_teacher_cannot_be_turned_off() -> None:
    with pytest.raises(DataError, match="average_decay is 0"):
        build(average_decay=0)
