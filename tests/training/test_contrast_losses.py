"""The contrastive losses equal literal loops of their equations, and use bounded memory."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from training.losses.contrast import draw_positions, pull_same_positions, push_all_apart, take_positions

TEMPERATURE = 0.2
PICTURES, POSITIONS, SIZE = 2, 5, 3


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shape = (PICTURES, POSITIONS, SIZE)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def _similarity(a: np.ndarray, b: np.ndarray, order: str) -> float:
    def norm(vector: np.ndarray) -> float:
        if order == "l1":
            return sum(abs(float(value)) for value in vector)
        return math.sqrt(sum(float(value) ** 2 for value in vector))

    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / (norm(a) * norm(b))


def _pull_by_loops(first: np.ndarray, second: np.ndarray, order: str) -> float:
    total = 0.0
    for n in range(PICTURES):
        for i in range(POSITIONS):
            every = sum(
                math.exp(_similarity(first[n, i], second[n, j], order) / TEMPERATURE)
                for j in range(POSITIONS)
            )
            same = math.exp(_similarity(first[n, i], second[n, i], order) / TEMPERATURE)
            total -= math.log(same / every)
    return total / (PICTURES * POSITIONS)


def _push_by_loops(first: np.ndarray, second: np.ndarray, order: str) -> float:
    total = 0.0
    for n in range(PICTURES):
        for i in range(POSITIONS):
            mean = 0.0
            for j in range(POSITIONS):
                mean += math.exp(_similarity(first[n, i], second[n, j], order) / TEMPERATURE) / POSITIONS
            total += math.log(1 + mean)
    return total / (PICTURES * POSITIONS)


@pytest.mark.parametrize("order", ["l2", "l1"])
def test_pulling_is_info_nce_with_the_other_positions_as_negatives(
    views: tuple[Tensor, Tensor], order: str
) -> None:
    first, second = views
    one_way = _pull_by_loops(first.numpy(), second.numpy(), order)
    other_way = _pull_by_loops(second.numpy(), first.numpy(), order)
    assert one_way != pytest.approx(other_way, rel=1e-4)
    assert float(pull_same_positions(first, second, TEMPERATURE, order, False)) == pytest.approx(
        one_way, rel=1e-5
    )
    both = float(pull_same_positions(first, second, TEMPERATURE, order, True))
    assert both == pytest.approx((one_way + other_way) / 2, rel=1e-5)


@pytest.mark.parametrize("order", ["l2", "l1"])
def test_pushing_is_info_nce_without_a_positive(views: tuple[Tensor, Tensor], order: str) -> None:
    first, second = views
    expected = _push_by_loops(first.numpy(), second.numpy(), order)
    assert float(push_all_apart(first, second, TEMPERATURE, order)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("order", ["l2", "l1"])
def test_gradients_to_both_views_equal_numerical_ones(views: tuple[Tensor, Tensor], order: str) -> None:
    inputs = tuple(view.double().requires_grad_() for view in views)
    pull = partial(pull_same_positions, temperature=TEMPERATURE, similarity=order, symmetric=True)
    push = partial(push_all_apart, temperature=TEMPERATURE, similarity=order)
    assert torch.autograd.gradcheck(pull, inputs)
    assert torch.autograd.gradcheck(push, inputs)


def test_the_pull_is_lowest_for_equal_views_and_the_push_for_opposite_ones(
    views: tuple[Tensor, Tensor],
) -> None:
    first, second = views
    pull = partial(pull_same_positions, temperature=TEMPERATURE, similarity="l2", symmetric=True)
    push = partial(push_all_apart, temperature=TEMPERATURE, similarity="l2")
    assert pull(first, first) < pull(first, second)
    one = first[:, :1].expand_as(first)
    assert push(one, -one) < push(first, second) < push(one, one)
    assert float(push(one, -one)) == pytest.approx(math.log(1 + math.exp(-1 / TEMPERATURE)), rel=1e-4)


def test_autocast_does_not_round_similarities(views: tuple[Tensor, Tensor]) -> None:
    first, second = views
    exact = pull_same_positions(first, second, 0.07, "l2", True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pull_same_positions(first, second, 0.07, "l2", True), exact)


def test_vectors_are_taken_where_their_positions_say() -> None:
    maps = torch.randn(2, 3, 4, 5)
    positions = torch.tensor([[0, 7, 19], [3, 3, 12]])
    vectors = take_positions(maps, positions)
    assert vectors.shape == (2, 3, 3)
    for n in range(2):
        for k in range(3):
            y, x = divmod(int(positions[n, k]), 5)
            assert torch.equal(vectors[n, k], maps[n, :, y, x])


def test_positions_are_different_bounded_and_repeat_with_the_seed() -> None:
    torch.manual_seed(7)
    drawn = draw_positions(3, 100_000, 64)
    assert drawn.shape == (3, 64)
    assert all(len(set(row.tolist())) == 64 and max(row) < 100_000 for row in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    torch.manual_seed(7)
    assert torch.equal(drawn, draw_positions(3, 100_000, 64))
    assert torch.equal(draw_positions(2, 6, 64), torch.arange(6).repeat(2, 1))
