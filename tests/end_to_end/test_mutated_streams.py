"""Mutated bitstreams against a real service; `python -m tests.soak.mutated_streams` does it ten thousand times."""

from __future__ import annotations

import copy

from tests.soak.mutated_streams import find_faults, run
from tests.soak.mutations import MUTATIONS


def test_mutated_streams_harm_nobody_else() -> None:
    account = run(count=60, seed=1, at_once=3)
    assert set(account["mutated"]) == set(MUTATIONS)
    assert account["received"] > 0
    assert find_faults(account) == []
    for spoil in (
        lambda spoiled: spoiled.update(received=spoiled["received"] + 1),
        lambda spoiled: spoiled["good"][0].update(wrong=1),
        lambda spoiled: spoiled["in the end"].update(zombies=1),
        lambda spoiled: spoiled.update(alive=False),
    ):
        spoiled = copy.deepcopy(account)
        spoil(spoiled)
        assert find_faults(spoiled), "the check above can fail"
