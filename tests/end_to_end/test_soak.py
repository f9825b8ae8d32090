"""The soaks' own judgement: `python -m tests.soak.unsteady_clients` runs for ten minutes, and here for some seconds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.soak.unsteady_clients import UnsteadyClient, find_faults, measure_growth, run


def readings(*megabytes: float) -> list[dict[str, Any]]:
    return [{"rss_mb": value} for value in megabytes]


def test_growth_is_measured_after_the_warm_up() -> None:
    assert measure_growth(readings(10, 50, 100, 100, 100, 100, 100, 100)) == pytest.approx(0)
    assert measure_growth(readings(100, 100, 100, 100, 103, 106, 109, 111)) == pytest.approx(0.1)


@pytest.mark.slow
def test_unsteady_clients_for_a_few_seconds() -> None:
    account = run(seconds=8, seed=1, is_leaking=False)
    assert sum(account["streams ended by"].values()) > 4
    assert set(account["streams ended by"]) <= set(UnsteadyClient.ENDINGS)
    assert account["received"] > 100
    assert find_faults({**account, "memory growth": 0.0}) == []
    assert find_faults({**account, "memory growth": 0.06})
