"""The scheduler as a state machine: whatever is offered, taken, finished and closed, its promises hold."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from service.contract.geometry import plan_fit
from service.contract.model_card import InputSize
from service.frames import DropReason, Frame, Timeline
from service.pipeline.latest_frames import Drop, LatestFrames, Mode

_CANVAS = np.zeros((32, 32, 3), np.uint8)
_FIT = plan_fit(32, 32, InputSize(height=32, width=32))


def make_frame(stream_id: str, sequence: int = 1, deadline_at: float | None = None) -> Frame:
    return Frame(stream_id, sequence, _CANVAS, _FIT, Timeline(0.0), deadline_at=deadline_at)


class Scheduler(RuleBasedStateMachine):
    open_streams = Bundle("open_streams")

    def __init__(self) -> None:
        super().__init__()
        self.frames = LatestFrames()
        self.modes: dict[str, Mode] = {}
        self.capacities: dict[str, int] = {}
        self.under_way: Counter[str] = Counter()
        self.priorities: dict[str, int] = {}
        self.overtaken: Counter[str] = Counter()
        self.waiting: dict[str, list[Frame]] = {}
        self.turns: list[str] = []
        self.offered = self.taken = self.dropped = 0
        self.now = 0.0
        self.names = iter(range(10**6))

    @rule(
        target=open_streams,
        mode=st.sampled_from(list(Mode)),
        capacity=st.integers(1, 3),
        priority=st.integers(-1, 2),
    )
    def open_stream(self, mode: Mode, capacity: int, priority: int) -> str:
        stream_id = f"s{next(self.names)}"
        self.frames.add_stream(stream_id, mode, capacity, priority)
        self.modes[stream_id], self.capacities[stream_id] = mode, capacity
        self.priorities[stream_id] = priority
        self.waiting[stream_id] = []
        return stream_id

    @initialize(target=open_streams, priorities=st.lists(st.integers(-1, 2), min_size=2, max_size=4))
    def open_some(self, priorities: list[int]) -> object:
        return multiple(*(self.open_stream(Mode.LATEST, 1, priority) for priority in priorities))

    @rule(patience_s=st.none() | st.floats(0, 3))
    def offer_everywhere(self, patience_s: float | None) -> None:
        for stream_id in list(self.waiting):
            self.offer(stream_id, patience_s)

    @rule(stream_id=open_streams, patience_s=st.none() | st.floats(0, 3))
    def offer(self, stream_id: str, patience_s: float | None) -> None:
        is_lossless = self.modes[stream_id] is Mode.EVERY
        deadline_at = None if patience_s is None or is_lossless else self.now + patience_s
        frame = make_frame(stream_id, self.offered, deadline_at)
        waiting = self.waiting[stream_id]
        is_full = len(waiting) + self.under_way[stream_id] >= self.capacities[stream_id]
        if is_lossless and is_full:
            assert not self.frames.has_room(stream_id)
            with pytest.raises(BufferError):
                self.frames.offer(frame)
            return
        assert self.frames.has_room(stream_id)
        drop = self.frames.offer(frame)
        self.offered += 1
        if not is_lossless and waiting:
            assert drop == Drop(waiting.pop(), DropReason.SUPERSEDED)
            self.dropped += 1
        else:
            assert drop is None
        waiting.append(frame)
        if stream_id not in self.turns:
            self.turns.append(stream_id)

    def next_stream(self, asked: set[str]) -> str | None:
        """Of the waiting streams not asked yet the one of the highest rank, and of those the first in line."""
        best = None
        for stream_id in self.turns:
            rank = self.priorities[stream_id] + self.overtaken[stream_id]
            if stream_id not in asked and (best is None or rank > best[0]):
                best = (rank, stream_id)
        return best[1] if best else None

    @rule(limit=st.integers(1, 4), passed_s=st.floats(0, 2), ahead_s=st.sampled_from([0.0, 0.5]))
    def take(self, limit: int, passed_s: float, ahead_s: float) -> None:
        self.now += passed_s
        taken = self.frames.take(self.now, limit, lambda stream_id: ahead_s)
        expected: list[Frame] = []
        expired: list[Frame] = []
        line = list(self.turns)
        asked: set[str] = set()
        while len(expected) < limit and (stream_id := self.next_stream(asked)) is not None:
            asked.add(stream_id)
            self.turns.remove(stream_id)
            waiting = self.waiting[stream_id]
            frame = waiting.pop(0)
            if frame.deadline_at is not None and frame.deadline_at < self.now + ahead_s:
                expired.append(frame)
                continue
            expected.append(frame)
            self.overtaken[stream_id] = 0
            if self.modes[stream_id] is Mode.EVERY:
                self.under_way[stream_id] += 1
            if waiting:
                self.turns.append(stream_id)
        for place, stream_id in enumerate(line):
            if stream_id not in asked and any(frame.stream_id in line[place:] for frame in expected):
                self.overtaken[stream_id] += 1
        assert list(taken.frames) == expected
        assert [(drop.frame, drop.reason) for drop in taken.drops] == [
            (frame, DropReason.DEADLINE) for frame in expired
        ]
        assert len({frame.stream_id for frame in taken.frames}) == len(taken.frames) <= limit
        self.taken += len(taken.frames)
        self.dropped += len(taken.drops)

    @rule(stream_id=open_streams)
    def finish(self, stream_id: str) -> None:
        self.frames.finish(stream_id)
        self.under_way[stream_id] = max(0, self.under_way[stream_id] - 1)

    @rule(stream_id=consumes(open_streams))
    def close_stream(self, stream_id: str) -> None:
        drops = self.frames.remove_stream(stream_id)
        waiting = self.waiting.pop(stream_id)
        assert [drop.frame for drop in drops] == waiting
        assert all(drop.reason is DropReason.CLOSED for drop in drops)
        self.dropped += len(drops)
        if stream_id in self.turns:
            self.turns.remove(stream_id)
        late = make_frame(stream_id)
        assert self.frames.has_room(stream_id)
        assert self.frames.offer(late) == Drop(late, DropReason.CLOSED)
        assert self.frames.remove_stream(stream_id) == ()

    @invariant()
    def every_frame_is_waiting_taken_or_dropped(self) -> None:
        assert self.offered == self.taken + self.dropped + len(self.frames)
        assert len(self.frames) == sum(map(len, self.waiting.values()))


TestScheduler = Scheduler.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_the_newest_frame_takes_the_place_of_the_older_in_the_queue() -> None:
    frames = LatestFrames()
    for stream_id in ("slow", "fast"):
        frames.add_stream(stream_id, Mode.LATEST)
    frames.offer(make_frame("fast", 1))
    frames.offer(make_frame("slow", 1))
    frames.offer(make_frame("fast", 2))
    taken = [frames.take(0.0, 1).frames[0] for _ in range(2)]
    assert [(frame.stream_id, frame.sequence) for frame in taken] == [("fast", 2), ("slow", 1)]


def test_a_busy_lossless_stream_does_not_starve_the_others() -> None:
    frames = LatestFrames()
    frames.add_stream("files", Mode.EVERY, capacity=10)
    frames.add_stream("live", Mode.LATEST)
    for sequence in range(10):
        frames.offer(make_frame("files", sequence))
    frames.offer(make_frame("live"))
    order = [frames.take(0.0, 1).frames[0].stream_id for _ in range(3)]
    assert order == ["files", "live", "files"]


def test_a_stream_cannot_be_opened_twice_or_without_room() -> None:
    frames = LatestFrames()
    frames.add_stream("one", Mode.LATEST)
    with pytest.raises(ValueError, match="open"):
        frames.add_stream("one", Mode.LATEST)
    with pytest.raises(ValueError, match="below 1"):
        frames.add_stream("two", Mode.EVERY, capacity=0)


def test_of_those_that_wait_the_higher_priority_goes_first() -> None:
    frames = LatestFrames()
    for stream_id, priority in {"low": -1, "first": 0, "second": 0, "high": 5}.items():
        frames.add_stream(stream_id, Mode.LATEST, priority=priority)
        frames.offer(make_frame(stream_id))
    assert [frame.stream_id for frame in frames.take(0.0, 4).frames] == ["high", "first", "second", "low"]


def test_a_higher_priority_overtakes_as_often_as_it_is_higher() -> None:
    frames = LatestFrames()
    frames.add_stream("low", Mode.LATEST)
    frames.add_stream("high", Mode.LATEST, priority=3)
    frames.offer(make_frame("low"))
    order = []
    for sequence in range(9):
        frames.offer(make_frame("high", sequence))
        order.append(frames.take(0.0, 1).frames[0].stream_id)
        frames.offer(make_frame("low", sequence))
    # After the low one's turn the high one is the first in line as well, and that is no overtaking.
    assert order == ["high"] * 3 + ["low"] + ["high"] + ["high"] * 3 + ["low"]


@given(
    priorities=st.lists(st.integers(-3, 6), min_size=1, max_size=5),
    limit=st.integers(1, 2),
    busy=st.lists(st.sets(st.integers(0, 4)), min_size=30, max_size=60),
)
def test_no_stream_waits_longer_than_its_priority_says(
    priorities: list[int], limit: int, busy: list[set[int]]
) -> None:
    frames = LatestFrames()
    for index, priority in enumerate(priorities):
        frames.add_stream(str(index), Mode.LATEST, priority=priority)
    waited: Counter[str] = Counter()
    for offering in busy:
        for index in offering | {0}:
            if index < len(priorities):
                frames.offer(make_frame(str(index)))
                waited[str(index)] += 0
        taken = frames.take(0.0, limit)
        for stream_id in list(waited):
            waited[stream_id] += 1
        for frame in taken.frames:
            bound = max(priorities) - priorities[int(frame.stream_id)] + 2 * len(priorities)
            assert waited.pop(frame.stream_id) <= bound
        for stream_id, takes in waited.items():
            assert takes <= max(priorities) - priorities[int(stream_id)] + 2 * len(priorities)


def test_a_low_stream_with_a_short_deadline_is_not_starved_by_a_busy_high_one() -> None:
    frames = LatestFrames()
    frames.add_stream("low", Mode.LATEST)
    frames.add_stream("high", Mode.LATEST, priority=3)
    served: Counter[str] = Counter()
    for now in range(100):
        frames.offer(make_frame("low", now, deadline_at=now + 0.5))
        for passed_s in (0.0, 0.9):
            frames.offer(make_frame("high", now))
            served.update(frame.stream_id for frame in frames.take(now + passed_s, 1).frames)
    assert served["low"] > 25


def test_a_frame_that_would_be_sent_too_late_is_dropped_now() -> None:
    frames = LatestFrames()
    frames.add_stream("one", Mode.LATEST)
    in_time, late = make_frame("one", 1, deadline_at=10.0), make_frame("one", 2, deadline_at=10.0)
    frames.offer(in_time)
    assert frames.take(9.75, 1, ahead_s=lambda stream_id: 0.25).frames == (in_time,)
    frames.offer(late)
    assert frames.take(9.76, 1, ahead_s=lambda stream_id: 0.25).drops == (Drop(late, DropReason.DEADLINE),)
