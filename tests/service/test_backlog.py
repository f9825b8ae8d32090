"""What a decoder does when it is too slow: pure, with a clock that the test moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.streams.backlog import Backlog, Unit
from service.streams.restarts import Restarts


def unit(sequence: int, arrived_at: float, is_key: bool = False) -> Unit:
    return Unit(sequence, arrived_at, is_key, None)


def take(backlog: Backlog, now: float) -> tuple[int | None, list[int]]:
    taken, given_up = backlog.take(now)
    return None if taken is None else taken.sequence, [one.sequence for one in given_up]


def test_units_are_taken_in_order_while_the_decoder_keeps_up() -> None:
    backlog = Backlog(behind_s=0.1)
    assert take(backlog, 0.0) == (None, [])
    for number in range(3):
        backlog.add(unit(number, 0.0, is_key=number == 0))
    assert [take(backlog, 0.1) for _ in range(4)] == [(0, []), (1, []), (2, []), (None, [])]


def test_a_late_decoder_goes_on_at_the_newest_key_frame_that_waits() -> None:
    backlog = Backlog(behind_s=0.1)
    for number in range(8):
        backlog.add(unit(number, number * 0.04, is_key=number in (0, 3, 6)))
    assert take(backlog, 0.2) == (6, [0, 1, 2, 3, 4, 5])
    assert take(backlog, 0.2) == (7, [])


def test_without_a_key_frame_it_decodes_on_and_catches_up() -> None:
    backlog = Backlog(behind_s=0.1)
    for number in range(20):
        backlog.add(unit(number, number * 0.04))
    now = 0.8  # a moment's trouble; then 10 ms a unit, four times as fast as they come
    for number in range(20):
        assert take(backlog, now) == (number, [])
        now += 0.01
    backlog.add(unit(20, now))
    assert take(backlog, now) == (20, [])


def test_a_decoder_that_does_not_catch_up_gives_up_everything_until_a_key_frame_comes() -> None:
    backlog = Backlog(behind_s=0.1)
    for number in range(4):
        backlog.add(unit(number, 0.0))
    assert take(backlog, 0.2) == (0, [])
    assert take(backlog, 0.6) == (1, [])
    assert take(backlog, 0.71) == (None, [2, 3])
    backlog.add(unit(4, 0.72))
    assert take(backlog, 0.72) == (None, [4])
    backlog.add(unit(5, 0.73, is_key=True))
    backlog.add(unit(6, 0.73))
    assert [take(backlog, 0.74) for _ in range(2)] == [(5, []), (6, [])]


def test_a_lossless_decoder_never_gives_up_a_unit() -> None:
    backlog = Backlog(behind_s=None)
    for number in range(50):
        backlog.add(unit(number, 0.0))
    assert [take(backlog, 1e6) for _ in range(50)] == [(number, []) for number in range(50)]
    backlog.add(unit(50, 0.0))
    assert not backlog.is_stale(0.0, 1e6)


def test_a_late_picture_gives_way_only_to_one_that_waits() -> None:
    backlog = Backlog(behind_s=0.1)
    assert not backlog.is_stale(0.0, 5.0)
    backlog.add(unit(1, 5.0))
    assert backlog.is_stale(4.89, 5.0)
    assert not backlog.is_stale(4.91, 5.0)


@given(
    keys=st.lists(st.booleans(), min_size=1, max_size=80),
    gaps=st.lists(st.floats(0, 0.1), min_size=80, max_size=80),
    costs=st.lists(st.floats(0, 0.3), min_size=80, max_size=80),
)
def test_every_unit_comes_out_once_and_after_a_gap_comes_a_key_frame(
    keys: list[bool], gaps: list[float], costs: list[float]
) -> None:
    backlog, now, came = Backlog(behind_s=0.1), 0.0, 0.0
    arrivals = []
    for is_key, gap in zip(keys, gaps, strict=False):
        came += gap
        arrivals.append((came, is_key))
    next_unit, taken, lost = 0, list[int](), list[int]()
    for cost in [*costs, *[0.0] * len(keys)]:
        while next_unit < len(arrivals) and arrivals[next_unit][0] <= now:
            backlog.add(unit(next_unit, *arrivals[next_unit]))
            next_unit += 1
        sequence, given_up = take(backlog, now)
        lost += given_up
        if sequence is None:
            now = max(now, arrivals[next_unit][0]) if next_unit < len(arrivals) else now
            continue
        follows = not taken or sequence == taken[-1] + 1
        assert (follows and (taken or sequence == 0)) or keys[sequence]
        taken.append(sequence)
        now += cost
    assert sorted(taken + lost) == list(range(len(taken) + len(lost)))
    assert taken == sorted(taken)


def test_restarts_wait_longer_each_time_and_end_at_the_cap() -> None:
    restarts = Restarts(cap=4, first_s=0.1, most_s=0.3, healthy_s=30.0)
    assert [restarts.fail(1.0) for _ in range(5)] == [0.1, 0.2, 0.3, 0.3, None]


def test_a_source_that_lived_long_starts_anew() -> None:
    restarts = Restarts(cap=2, first_s=0.1, most_s=5.0, healthy_s=30.0)
    assert [restarts.fail(1.0), restarts.fail(1.0), restarts.fail(31.0), restarts.fail(1.0)] == [
        0.1,
        0.2,
        0.1,
        0.2,
    ]
    assert restarts.fail(1.0) is None
