"""What a frame costs: the class nearest to a newcomer, and means that follow a change but no outlier."""

from __future__ import annotations

import pytest

from service.pipeline.processor_costs import Newcomer, ProcessorCosts, RunningMean
from tests.service.admission_desk import HD


def test_who_does_not_say_its_size_is_taken_for_the_last_of_its_codec() -> None:
    costs = ProcessorCosts()
    for pixels, seconds in {HD: 0.010, HD // 4: 0.003, HD // 2: 0.005}.items():
        costs.add("h264", pixels, seconds, 0.0, 10.0)
    costs.add("jpeg", HD, 0.002, 0.0, 10.0)
    assert costs.estimate(Newcomer("h264")) == pytest.approx(0.05)
    costs.add("h264", HD, 0.010, 0.0)
    assert costs.estimate(Newcomer("h264")) == pytest.approx(0.10)


def test_sizes_that_change_all_the_time_fill_no_memory_and_forget_the_oldest() -> None:
    costs = ProcessorCosts()
    costs.add("hevc", 1, 0.5, 0.0, 1.0)
    for pixels in range(1, 65):
        costs.add("h264", pixels, 0.001, 0.0, 1.0)
    assert costs.estimate(Newcomer("hevc", 1, 1)) == pytest.approx(0.001), (
        "what was known of hevc is forgotten"
    )


def test_a_mean_forgets_and_lets_no_outlier_rule() -> None:
    for first, second in [(0.3, 0.01), (0.01, 0.3)]:
        mean = RunningMean()
        for value in [first, second, *[0.01] * 20]:
            mean.add(value)
        assert mean.value == pytest.approx(0.01), "one of the first paid for start-up"
    mean.add(1.0)
    assert mean.value < 0.013
    for _ in range(200):
        mean.add(0.02)
    assert mean.value == pytest.approx(0.02, rel=0.001), "it forgets"
    rising = RunningMean()
    for value in [0.0, 0.0, *[0.01] * 100]:
        rising.add(value)
    assert rising.value == pytest.approx(0.01, rel=0.1), "it leaves zero"
