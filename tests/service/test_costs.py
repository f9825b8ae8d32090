"""How long a frame still needs once it is taken: a robust figure that can never stop a stream for good."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.geometry import plan_fit
from service.contract.model_card import InputSize
from service.frames import DropReason, Frame, Stage, Timeline
from service.pipeline.costs import CostEstimate
from service.pipeline.latest_frames import Mode
from service.pipeline.waiting_room import WaitingRoom


def measure(costs: CostEstimate, durations_s: list[float], stage: Stage = Stage.INFER) -> float:
    """Add one duration every 10 ms; gives the instant after the last."""
    for index, seconds in enumerate(durations_s):
        costs.add(stage, seconds, index * 0.01, "one")
    return len(durations_s) * 0.01


def test_nothing_known_is_no_time_and_neither_is_too_little() -> None:
    costs = CostEstimate()
    assert costs.estimate_ahead(0.0, "one") == 0.0
    now = measure(costs, [0.1] * 7)
    assert costs.estimate_ahead(now, "one") == 0.0
    costs.add(Stage.INFER, 0.1, now, "one")
    assert costs.estimate_ahead(now, "one") == 0.1


def test_the_stages_still_to_come_add_up_and_the_earlier_ones_count_nothing() -> None:
    costs = CostEstimate()
    for stage, seconds in zip(Stage, [0.5, 0.5, 0.5, 0.007, 0.002, 0.001], strict=True):
        now = measure(costs, [seconds] * 20, stage)
    assert costs.estimate_ahead(now, "one") == pytest.approx(0.010)


def test_one_frame_in_ten_may_be_slow_without_a_change() -> None:
    durations_s = [0.007] * 54 + [0.3] * 6
    random.Random(1).shuffle(durations_s)
    costs = CostEstimate()
    assert costs.estimate_ahead(measure(costs, durations_s), "one") == 0.007
    costs = CostEstimate()
    assert costs.estimate_ahead(measure(costs, durations_s + [0.3] * 4), "one") == 0.3


@given(st.lists(st.floats(0.0, 1.0), min_size=8, max_size=100))
def test_the_estimate_is_one_of_the_last_durations_and_no_low_one(durations_s: list[float]) -> None:
    costs = CostEstimate()
    estimate_s = costs.estimate_ahead(measure(costs, durations_s), "one")
    last = durations_s[-64:]
    assert estimate_s in last
    assert sum(seconds <= estimate_s for seconds in last) > 0.9 * (len(last) - 1)


def test_a_viewer_who_does_not_read_is_not_what_sending_takes() -> None:
    costs = CostEstimate()
    now = measure(costs, [2.0] * 20 + [0.001] * 5, Stage.SEND)
    assert costs.estimate_ahead(now, "one") == 0.001
    now = measure(costs, [2.0] * 25, Stage.SEND)
    assert costs.estimate_ahead(now, "another") == 0.0, (
        "a slow viewer of one stream is no other stream's matter"
    )


def test_a_stream_that_was_opened_again_is_not_judged_by_its_last_viewers() -> None:
    costs = CostEstimate()
    now = measure(costs, [2.0] * 20, Stage.SEND)
    assert costs.estimate_ahead(now, "one") == 2.0
    costs.forget("one")
    assert costs.estimate_ahead(now, "one") == 0.0


def test_it_follows_a_change_within_seconds() -> None:
    costs = CostEstimate()
    now = measure(costs, [0.1] * 100)
    for _ in range(64):
        now += 0.02
        costs.add(Stage.INFER, 0.005, now, "one")
    assert costs.estimate_ahead(now, "one") == 0.005


def test_when_nothing_is_measured_any_more_the_estimate_lets_frames_through_again() -> None:
    costs = CostEstimate()
    now = measure(costs, [0.4] * 50)
    assert costs.estimate_ahead(now + 1.0, "one") == 0.4
    assert costs.estimate_ahead(now + 2.1, "one") == 0.0


def test_the_waiting_room_drops_what_could_not_be_sent_in_time() -> None:
    now = 0.0
    room = WaitingRoom(lambda: now)
    size = InputSize(height=32, width=32)
    canvas_hwc = np.zeros((32, 32, 3), np.uint8)

    def take(wait_limit_s: float) -> list[DropReason]:
        timeline = Timeline(now)
        frame = Frame("one", 1, canvas_hwc, plan_fit(32, 32, size), timeline, deadline_at=now + wait_limit_s)
        room.offer(frame)
        taken = room.take(1, 0.0)
        assert taken is not None
        room.done(taken)
        assert len(taken.frames) + len(taken.drops) == 1
        return [drop.reason for drop in taken.drops]

    room.measure(Stage.SEND, 0.5, "gone")  # its last answer arrived after it was closed
    room.add_stream("one", Mode.LATEST)
    assert take(0.010) == []
    for _ in range(8):
        room.measure(Stage.INFER, 0.012, "one")
        room.measure(Stage.SEND, 0.001, "one")
    assert take(0.010) == [DropReason.DEADLINE]
    assert take(0.014) == []
    now = 2.1
    assert take(0.010) == []
