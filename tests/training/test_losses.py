"""Each loss equals a literal loop of its equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.losses.segmentation import cross_entropy, soft_dice


def random_case(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, 3, 4, generator=generator, requires_grad=True)
    return logits, torch.randint(0, classes, (2, 3, 4), generator=generator)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = [math.exp(value) for value in values]
    return np.array(exponentials) / sum(exponentials)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [2, 4])
def test_cross_entropy_is_the_mean_negative_log_probability(classes: int, smoothing: float) -> None:
    logits, targets = random_case(classes)
    total, count = 0.0, 0
    for n in range(2):
        for y in range(3):
            for x in range(4):
                probabilities = softmax(logits[n, :, y, x].detach().numpy())
                for c in range(classes):
                    wanted = (1 - smoothing) * float(targets[n, y, x] == c) + smoothing / classes
                    total -= wanted * math.log(probabilities[c])
                count += 1
    assert float(cross_entropy(logits.detach(), targets, smoothing)) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_soft_dice_is_one_minus_the_mean_over_foreground_classes(classes: int) -> None:
    logits, targets = random_case(classes)
    dices = []
    for c in range(1, classes):
        shared = predicted = true = 0.0
        for n in range(2):
            for y in range(3):
                for x in range(4):
                    p = softmax(logits[n, :, y, x].detach().numpy())[c]
                    t = float(targets[n, y, x] == c)
                    shared, predicted, true = shared + p * t, predicted + p, true + t
        dices.append((2 * shared + 1) / (predicted + true + 1))
    assert float(soft_dice(logits.detach(), targets)) == pytest.approx(1 - np.mean(dices), rel=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice])
def test_a_loss_has_a_finite_gradient_that_lowers_it(loss: object) -> None:
    logits, targets = random_case(2)
    value = loss(logits, targets)  # type: ignore[operator]
    value.backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0
    assert loss(logits.detach() - 0.1 * logits.grad, targets) < value  # type: ignore[operator]


def test_a_perfect_mask_costs_next_to_nothing() -> None:
    targets = torch.zeros(1, 4, 4, dtype=torch.int64)
    targets[0, 1:3] = 1
    logits = torch.stack([1 - 2 * targets, 2 * targets - 1], dim=1).float() * 20
    assert float(cross_entropy(logits, targets)) < 1e-6
    assert float(soft_dice(logits, targets)) < 1e-6
    assert float(soft_dice(logits, torch.zeros_like(targets))) > 0.8
