from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.frames import Stage, Timeline

gaps_s = st.lists(
    st.tuples(st.sampled_from(list(Stage)), st.floats(0, 10, allow_nan=False)), min_size=0, max_size=12
)


@given(arrived_at=st.floats(0, 1e6), gaps=gaps_s)
def test_stages_are_the_gaps_between_marks_and_add_up_to_the_total(
    arrived_at: float, gaps: list[tuple[Stage, float]]
) -> None:
    timeline = Timeline(arrived_at)
    now = arrived_at
    for stage, gap_s in gaps:
        now += gap_s
        timeline.mark(stage, now)
    durations_s = timeline.durations_s()
    assert set(durations_s) == {stage for stage, _ in gaps}
    assert all(duration_s >= 0 for duration_s in durations_s.values())
    assert math.isclose(sum(durations_s.values()), timeline.total_s, abs_tol=1e-6)
    assert timeline.ended_at == now


def test_a_stage_marked_twice_counts_both_gaps() -> None:
    timeline = Timeline(1.0)
    timeline.mark(Stage.ENCODE, 2.0)
    timeline.mark(Stage.SEND, 4.0)
    timeline.mark(Stage.ENCODE, 8.0)
    assert timeline.durations_s() == {Stage.ENCODE: 5.0, Stage.SEND: 2.0}


def test_a_mark_before_the_last_one_is_refused() -> None:
    timeline = Timeline(5.0)
    with pytest.raises(ValueError, match="before"):
        timeline.mark(Stage.DECODE, 4.9)
