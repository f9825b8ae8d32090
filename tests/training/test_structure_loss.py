"""The structure loss equals a literal loop of its equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.losses.structure import class_log_odds, structure_loss

WINDOW, GAIN = 3, 5.0


def _random_case(classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, 5, 4, generator=generator)
    return logits, torch.randint(0, classes, (2, 5, 4), generator=generator)


def _softmax(values: np.ndarray) -> list[float]:
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def _weight(mask: np.ndarray, y: int, x: int, window: int, gain: float) -> float:
    reach, near = window // 2, []
    for v in range(max(0, y - reach), min(mask.shape[0], y + reach + 1)):
        for u in range(max(0, x - reach), min(mask.shape[1], x + reach + 1)):
            near.append(float(mask[v, u]))
    return 1 + gain * abs(sum(near) / len(near) - float(mask[y, x]))


def _structure_loss_by_loops(logits: np.ndarray, targets: np.ndarray, window: int, gain: float) -> float:
    pictures, classes, height, width = logits.shape
    losses = []
    for n in range(pictures):
        for c in range(1, classes):
            mask = targets[n] == c
            weights = weighted_bce = shared = united = 0.0
            for y in range(height):
                for x in range(width):
                    p, m = _softmax(logits[n, :, y, x])[c], float(mask[y, x])
                    w = _weight(mask, y, x, window, gain)
                    weights += w
                    weighted_bce += w * -(m * math.log(p) + (1 - m) * math.log(1 - p))
                    shared += w * p * m
                    united += w * (p + m - p * m)
            losses.append(weighted_bce / weights + 1 - (shared + 1) / (united + 1))
    return float(np.mean(losses))


@pytest.mark.parametrize("classes", [2, 4])
def test_it_is_the_boundary_weighted_bce_plus_iou(classes: int) -> None:
    logits, targets = _random_case(classes)
    expected = _structure_loss_by_loops(logits.numpy(), targets.numpy(), WINDOW, GAIN)
    assert float(structure_loss(logits, targets, WINDOW, GAIN)) == pytest.approx(expected, rel=1e-5)


def test_its_defaults_are_the_papers_window_of_31_and_gain_of_5() -> None:
    logits, targets = _random_case(2)
    expected = _structure_loss_by_loops(logits.numpy(), targets.numpy(), 31, 5.0)
    assert float(structure_loss(logits, targets)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_log_odds_are_those_of_the_softmax(classes: int) -> None:
    logits, _ = _random_case(classes)
    odds = class_log_odds(logits)
    assert odds.shape == (2, classes - 1, 5, 4)
    for y in range(5):
        for x in range(4):
            probabilities = _softmax(logits[1, :, y, x].numpy())
            for c in range(1, classes):
                expected = math.log(probabilities[c] / (1 - probabilities[c]))
                assert float(odds[1, c - 1, y, x]) == pytest.approx(expected, abs=1e-5)
    if classes == 2:
        torch.testing.assert_close(odds[:, 0], logits[:, 1] - logits[:, 0])


def test_a_pixel_at_the_boundary_costs_more_than_one_inside() -> None:
    targets = torch.zeros(1, 64, 64, dtype=torch.int64)
    targets[0, :, 32:] = 1
    right = torch.stack([1 - 2 * targets, 2 * targets - 1], dim=1).float() * 8
    costs = {}
    for column in (33, 62):
        wrong = right.clone()
        wrong[0, :, 20, column] *= -1
        costs[column] = float(structure_loss(wrong, targets))
    assert costs[33] > 2 * costs[62] > 2 * float(structure_loss(right, targets))


def test_an_instrument_that_leaves_the_picture_has_no_boundary_there() -> None:
    everything = torch.ones(1, 8, 8, dtype=torch.int64)
    logits = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    without = structure_loss(logits, everything, gain=0.0)
    torch.testing.assert_close(structure_loss(logits, everything), without)


def test_certain_logits_give_a_finite_loss_and_gradient() -> None:
    _, targets = _random_case(3)
    logits = (torch.randn(2, 3, 5, 4) * 300).requires_grad_()
    loss = structure_loss(logits, targets)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
