"""The mean and the disagreement of two networks, against a loop over pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from training.networks.views import MeanOfViews

CLASSES = 3


@pytest.fixture
def views() -> MeanOfViews:
    torch.manual_seed(1)
    return MeanOfViews(nn.Conv2d(3, CLASSES, 1), nn.Conv2d(3, CLASSES, 1))


def _softmax(logits: Tensor) -> list[float]:
    exponents = [math.exp(value) for value in logits.tolist()]
    return [value / sum(exponents) for value in exponents]


def test_softmax_of_the_mean_is_the_mean_of_the_probabilities(views: MeanOfViews) -> None:
    images = torch.randn(2, 3, 4, 5)
    with torch.no_grad():
        mean, first, second = views(images), views.first(images), views.second(images)
        disagreement = views.disagreement(images)
    assert mean.shape == (2, CLASSES, 4, 5)
    for n in range(2):
        for y in range(4):
            for x in range(5):
                p, q = _softmax(first[n, :, y, x]), _softmax(second[n, :, y, x])
                expected = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
                assert _softmax(mean[n, :, y, x]) == pytest.approx(expected, abs=1e-6)
                apart = sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
                assert disagreement[n, y, x].item() == pytest.approx(apart, abs=1e-6)


def test_equal_networks_agree_and_certain_opposites_disagree_wholly() -> None:
    certain = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(certain.weight)
    certain.bias.data = torch.tensor([40.0, -40.0])
    opposite = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(opposite.weight)
    opposite.bias.data = torch.tensor([-40.0, 40.0])
    images = torch.randn(1, 3, 2, 2)
    assert torch.equal(MeanOfViews(certain, certain).disagreement(images), torch.zeros(1, 2, 2))
    assert torch.allclose(MeanOfViews(certain, opposite).disagreement(images), torch.ones(1, 2, 2))
    assert torch.isfinite(MeanOfViews(certain, opposite)(images)).all()


def test_the_networks_are_held_not_copied(views: MeanOfViews) -> None:
    views.eval()
    assert not views.first.training
    assert not views.second.training
    assert not MeanOfViews(views.first, views.second).training
