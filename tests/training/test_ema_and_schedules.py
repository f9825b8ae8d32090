"""The weight average and what changes with the step."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from training.ema import WeightAverage
from training.schedules import learning_rate_factor, progressive_scale


def test_the_average_follows_its_equation_and_copies_integers() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    average = WeightAverage(network, 0.9)
    expected = network[0].weight.detach().clone()
    for count in range(1, 40):
        with torch.no_grad():
            network[0].weight += 1
            network[1].num_batches_tracked += 3
        average.update(network)
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * network[0].weight.detach()
    torch.testing.assert_close(average.average[0].weight, expected)
    assert average.average[1].num_batches_tracked == network[1].num_batches_tracked == 117
    assert average.average[1].num_batches_tracked.dtype == torch.int64


def test_the_average_wants_no_gradient_and_stays_in_eval_mode() -> None:
    average = WeightAverage(nn.BatchNorm2d(2), 0.9).train()
    assert not average.average.training
    assert not any(parameter.requires_grad for parameter in average.parameters())


@pytest.mark.parametrize("shape", ["cosine", "poly", "constant"])
def test_the_learning_rate_warms_up_then_never_rises(shape: str) -> None:
    factors = [learning_rate_factor(step, 100, 10, shape) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[10:]))
    assert factors[10] == 1.0
    assert (factors[-1] < 0.02) == (shape != "constant")


def test_poly_is_the_papers_power() -> None:
    assert learning_rate_factor(50, 100, 0, "poly") == pytest.approx(0.5**0.9)


def test_pictures_grow_with_the_run() -> None:
    stages = ((0.3, 0.5), (0.6, 0.75))
    assert [progressive_scale(step, 10, stages) for step in (0, 2, 3, 5, 6, 9)] == [
        0.5,
        0.5,
        0.75,
        0.75,
        1,
        1,
    ]
