"""Lanes: one result for each argument in its place, on as many threads as there are lanes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from service.backends.lanes import Lanes


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_each_argument_has_its_result_in_its_place(lanes: int, count: int) -> None:
    opened = Lanes(lambda number: number * number, lanes)
    assert opened.map(range(count)) == [number * number for number in range(count)]
    opened.close()


def test_the_lanes_work_at_the_same_time_and_one_of_them_is_the_callers() -> None:
    all_here = threading.Barrier(3, timeout=10)

    def meet(_: int) -> str:
        all_here.wait()
        return threading.current_thread().name

    opened = Lanes(meet, 3)
    names = opened.map(range(3))
    opened.close()
    assert names[0] == threading.current_thread().name
    assert len(set(names)) == 3


def test_what_fails_in_a_lane_reaches_the_caller_and_the_next_call_is_served() -> None:
    def refuse_seven(number: int) -> int:
        if number == 7:
            raise KeyError("seven")
        return number

    opened = Lanes(refuse_seven, 2)
    for arguments in ([7, 1], [1, 7]):
        with pytest.raises(KeyError, match="seven"):
            opened.map(arguments)
        assert opened.map([3, 4]) == [3, 4]
    opened.close()


def test_helpers_keep_to_their_cores_and_go_when_told() -> None:
    core = max(os.sched_getaffinity(0))
    opened = Lanes(lambda _: (threading.get_native_id(), os.sched_getaffinity(0)), 2, [core])
    (_, mine), (helper, theirs) = opened.map([0, 1])
    assert (mine, theirs) == (os.sched_getaffinity(0), {core})
    opened.close()
    task = Path(f"/proc/self/task/{helper}")
    ends_at = time.monotonic() + 5
    while task.exists() and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert not task.exists()
