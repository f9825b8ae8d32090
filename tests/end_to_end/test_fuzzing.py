"""Fuzzed requests and messages against a real service; `python -m tests.soak.fuzzing` does it ten thousand times."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="the package schemathesis (extra dev) is not installed")

from service.app import create_app
from service.settings import Settings
from tests.soak.fuzzed_messages import KINDS, SocketMaker
from tests.soak.fuzzed_requests import RequestMaker
from tests.soak.fuzzing import find_faults, run
from tests.soak.fuzzing_site import HOLDERS, draw_pictures


@pytest.fixture(scope="module")
def account() -> dict[str, Any]:
    return run(count=150, seed=1)


def test_nothing_that_strangers_send_does_harm(account: dict[str, Any]) -> None:
    assert sum(account["messages"].values()) == sum(map(sum_of, account["requests"].values())) == 150
    assert set(account["messages"]) == {"opening", *KINDS}
    assert len(account["requests"]) >= 10
    assert {"positive", "negative", "strange"} <= set(account["kinds of requests"])
    assert find_faults(account) == []


def sum_of(counts: dict[str, int]) -> int:
    return sum(counts.values())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda account: account.update(alive=False),
        lambda account: account["good"].update(wrong=1),
        lambda account: account["good"].update(answered=account["good"]["pushed"] - 1),
        lambda account: account["in the end"].update(zombies=1),
        lambda account: account["log"].update(tracebacks=1),
        lambda account: account["found"].update({"500: b''": ["GET /"]}),
        lambda account: account.update({"memory growth": 0.06}),
        lambda account: account["readings"].append({**account["readings"][0], "descriptors": 99}),
    ],
)
def test_the_judgement_can_fail(account: dict[str, Any], spoil: Callable[[dict[str, Any]], None]) -> None:
    spoilt = copy.deepcopy(account)
    spoil(spoilt)
    assert find_faults(spoilt)


def test_faults_of_a_real_service_are_found() -> None:
    """A route that fails, a door that lets too many in, and a log that repeats what it is told."""
    account = run(count=100, seed=2, spoil="broken+careless+talkative")
    found = " ".join(account["found"])
    assert "500: " in found
    assert "where 403 belongs" in found
    assert account["log"]["not proper"]
    assert account["log"]["tracebacks"]


def test_the_same_seed_makes_the_same(small_bundle: Path) -> None:
    pictures = draw_pictures(2)
    secrets = dict.fromkeys(HOLDERS, "surgseg_x")
    document = create_app(Settings(bundle=small_bundle)).openapi()
    one, other = (RequestMaker(document, secrets, pictures) for _ in range(2))
    assert one.make(30, 7) == other.make(30, 7) != one.make(30, 8)
    assert SocketMaker(pictures).make(30, 7) == SocketMaker(pictures).make(30, 7)
