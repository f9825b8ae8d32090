"""The contrast of groups equals a literal loop of its equation, and is finite whatever is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.losses.group_contrast import NO_GROUP, pull_groups_together

TEMPERATURE = 0.2
Case = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def case() -> Case:
    """Group 0 is frequent among the queries, group 2 has no key, group 3 no query, and some places are empty."""
    generator = torch.Generator().manual_seed(4)
    queries, keys = torch.randn(8, 3, generator=generator), torch.randn(9, 3, generator=generator)
    query_groups = torch.tensor([0, 0, 0, 1, 2, NO_GROUP, 0, 1])
    key_groups = torch.tensor([0, 1, 1, 3, NO_GROUP, 0, 1, 3, 0])
    return queries, query_groups, keys, key_groups


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b))


def contrast_by_loops(
    queries: np.ndarray, query_groups: np.ndarray, keys: np.ndarray, key_groups: np.ndarray
) -> float:
    losses_of: dict[int, list[float]] = {}
    for query, group in zip(queries, query_groups.tolist(), strict=True):
        pairs = [
            (cosine(query, key) / TEMPERATURE, other)
            for key, other in zip(keys, key_groups.tolist(), strict=True)
        ]
        own = [score for score, other in pairs if other == group]
        others = sum(math.exp(score) for score, other in pairs if other not in (group, NO_GROUP))
        if group == NO_GROUP or not own or not others:
            continue
        terms = [-math.log(math.exp(score) / (math.exp(score) + others)) for score in own]
        losses_of.setdefault(group, []).append(sum(terms) / len(terms))
    means = [sum(losses) / len(losses) for losses in losses_of.values()]
    return sum(means) / len(means)


def test_it_is_the_equation(case: Case) -> None:
    expected = contrast_by_loops(*(values.numpy() for values in case))
    assert float(pull_groups_together(*case, TEMPERATURE)) == pytest.approx(expected, rel=1e-5)


def test_its_gradient_equals_the_numerical_one(case: Case) -> None:
    queries, query_groups, keys, key_groups = case
    assert torch.autograd.gradcheck(
        lambda q, k: pull_groups_together(q, query_groups, k, key_groups, TEMPERATURE),
        (queries.double().requires_grad_(), keys.double().requires_grad_()),
    )


def test_a_frequent_group_weighs_no_more_than_a_rare_one(case: Case) -> None:
    queries, query_groups, keys, key_groups = case
    is_frequent = query_groups == 0
    doubled = torch.cat([queries, queries[is_frequent]]), torch.cat([query_groups, query_groups[is_frequent]])
    once, twice = pull_groups_together(*case, 0.2), pull_groups_together(*doubled, keys, key_groups, 0.2)
    torch.testing.assert_close(once, twice)


def test_it_is_low_where_groups_lie_apart_and_high_where_they_are_mixed() -> None:
    keys, groups = torch.eye(4), torch.arange(4)
    apart, mixed = (pull_groups_together(q, groups, keys, groups, 0.1) for q in (keys, keys.roll(1, 0)))
    assert float(apart) == pytest.approx(math.log(1 + 3 * math.exp(-10)), abs=1e-6)
    assert float(mixed) == pytest.approx(math.log(1 + 2 + math.exp(10)), rel=1e-4)


@pytest.mark.parametrize(
    ("query_group", "key_groups"),
    [(NO_GROUP, [0, 1]), (0, [NO_GROUP, NO_GROUP]), (0, [0, 0]), (0, [1, 1]), (0, [])],
    ids=["no query", "no key", "no other group", "no key of its group", "no key at all"],
)
def test_without_anything_to_compare_it_is_zero_with_a_gradient_of_zero(
    query_group: int, key_groups: list[int]
) -> None:
    queries = torch.randn(2, 3).requires_grad_()
    groups = torch.tensor(key_groups, dtype=torch.int64)
    loss = pull_groups_together(
        queries, torch.full((2,), query_group), torch.randn(len(groups), 3), groups, 0.07
    )
    loss.backward()
    assert float(loss.detach()) == 0
    assert queries.grad is not None and not queries.grad.any()


def test_empty_places_and_vectors_of_nothing_change_nothing(case: Case) -> None:
    queries, query_groups, keys, key_groups = case
    nothing, empty = torch.zeros(5, 3), torch.full((5,), NO_GROUP)
    padded = torch.cat([queries, nothing]).requires_grad_()
    loss = pull_groups_together(
        padded,
        torch.cat([query_groups, empty]),
        torch.cat([keys, nothing]),
        torch.cat([key_groups, empty]),
        0.2,
    )
    loss.backward()
    torch.testing.assert_close(loss, pull_groups_together(*case, 0.2))
    assert padded.grad is not None and torch.isfinite(padded.grad).all() and not padded.grad[-5:].any()


def test_autocast_does_not_round_similarities(case: Case) -> None:
    exact = pull_groups_together(*case, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pull_groups_together(*case, 0.07), exact)
