"""Who must go again: the newest, when it breaks what was promised to those before it, and never one of those."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from service.pipeline.admission import Admitted, Refused
from service.pipeline.processor_costs import Newcomer
from tests.service.admission_desk import HD, REVIEW_S, Desk


def test_those_let_in_while_nothing_was_known_go_again_and_the_oldest_stay() -> None:
    desk = Desk()
    for index in range(8):
        assert desk.admit(str(index)) == Admitted(None)
        desk.send(str(index), 30, 0.47)
    evictions = desk.run(11.0)
    assert [eviction.stream_id for eviction in evictions] == ["7", "6", "5", "4", "3"]
    assert re.search(r"need 3\.76 cores and may use 1\.60", evictions[0].reason)
    assert desk.admission.count_used(desk.now) == pytest.approx(3 * 0.47, rel=0.05)


def test_a_small_stream_stays_when_an_older_large_one_must_go_anyway() -> None:
    desk = Desk()
    desk.establish("elder", 30, 1.2)
    claims = Newcomer("h264", 640, 360, 5)
    for stream_id, cores in {"liar": 1.0, "small": 0.1}.items():
        assert isinstance(desk.admit(stream_id, claims), Admitted)
        desk.send(stream_id, 30, cores)
    assert [eviction.stream_id for eviction in desk.run(20.0)] == ["liar"]


def test_an_established_stream_is_never_closed_even_when_it_grows() -> None:
    desk = Desk()
    desk.establish("one", 30, 0.5)
    desk.establish("two", 30, 0.5)
    desk.send("two", 60, 3.0)
    desk.latency_s = {"one": 0.2, "two": 0.2}
    assert desk.run(60.0) == []
    answer = desk.admit("three")
    assert isinstance(answer, Refused)
    assert "take longer than 50 ms" in answer.reason


def test_who_makes_the_others_late_goes_again_and_does_not_come_back_at_once() -> None:
    desk = Desk()
    desk.establish("elder", 30, 0.4)
    claims = Newcomer("h264", 1280, 720, 30)
    for stream_id in ("older", "newest"):
        assert isinstance(desk.admit(stream_id, claims), Admitted)
        desk.send(stream_id, 30, 0.2)
    desk.latency_s["elder"] = 0.08
    (eviction,) = desk.run(4.0)
    assert eviction.stream_id == "newest"
    assert "100% of the frames of those served before take longer than 50 ms" in eviction.reason
    desk.latency_s["elder"] = 0.02
    assert desk.run(8.0) == []
    assert isinstance(desk.admit("again", claims), Refused), "it would be as late as before"
    desk.run(60.0)
    assert isinstance(desk.admit("again", claims), Admitted), "it may have been somebody else"
    assert isinstance(desk.admit("another", claims), Refused), "one at a time may try"
    desk.send("again", 30, 0.2)
    assert desk.run(11.0) == []
    for stream_id in ("another", "one more"):
        assert isinstance(desk.admit(stream_id, claims), Admitted), "the limit is what it was"


def test_a_few_percent_over_the_limit_close_nobody() -> None:
    desk = Desk()
    desk.establish("elder", 30, 1.2)
    claims = Newcomer("h264", 1920, 1080, 10)
    assert isinstance(desk.admit("new", claims), Admitted)
    desk.send("new", 10, 0.5)
    assert desk.run(20.0) == []
    desk.send("new", 10, 1.0)
    assert desk.run(20.0) == [], "it is established by now"


def test_who_overloads_the_machine_as_probation_ends_goes_all_the_same() -> None:
    desk = Desk()
    desk.establish("elder", 30, 1.0)
    assert isinstance(desk.admit("new", Newcomer("h264", 640, 360, 30)), Admitted)
    desk.send("new", 30, 0.2)
    assert desk.run(8.0) == []
    desk.send("new", 30, 1.0)
    assert len(desk.run(6.0)) == 1


def test_who_has_just_begun_is_not_the_cause_of_what_was_before() -> None:
    desk = Desk()
    desk.establish("one", 30, 0.3)
    assert isinstance(desk.admit("new"), Admitted)
    desk.latency_s["one"] = 0.2
    assert desk.run(10.0) == []
    desk.latency_s = {}
    desk.send("new", 30, 0.1)
    assert desk.run(20.0) == []


def test_who_has_not_sent_a_frame_has_made_nobody_late_and_nothing_full() -> None:
    desk = Desk()
    desk.establish("one", 30, 0.3)
    desk.establish("two", 30, 0.3)
    assert isinstance(desk.admit("silent"), Admitted)
    assert isinstance(desk.admit("file", Newcomer("h264", is_elastic=True)), Admitted)
    desk.latency_s = {"one": 0.2, "two": 0.2}
    assert desk.run(10.0) == []
    desk.latency_s = {}
    desk.send("file", 30, 0.1)
    desk.send("two", 30, 3.0)
    assert desk.run(20.0) == []


def test_one_short_spike_closes_nobody() -> None:
    desk = Desk()
    desk.establish("elder", 30, 0.4)
    assert isinstance(desk.admit("new"), Admitted)
    desk.send("new", 30, 0.2)
    desk.latency_s = {"elder": 0.5, "new": 0.5}
    assert desk.run(0.5) == []
    desk.latency_s = {}
    assert desk.run(20.0) == []


def test_frames_that_come_in_a_burst_are_no_rate() -> None:
    desk = Desk()
    desk.establish("elder", 30, 1.0)
    assert isinstance(desk.admit("new", Newcomer("h264", 640, 360, 30)), Admitted)
    for index in range(100):
        desk.admission.receive("new", desk.now + index * 0.001)
        desk.admission.serve("new", pixels=HD, picture_s=0.01, mask_s=0.004, latency_s=0.02, now=desk.now)
    desk.now += 0.1
    assert desk.admission.count_used(desk.now) < 1.6
    desk.send("new", 30, 0.4)
    assert desk.run(20.0) == []


def test_a_stream_that_is_slow_by_itself_is_no_reason_against_others() -> None:
    desk = Desk()
    desk.latency_s["slow"] = 0.09
    desk.establish("slow", 10, 0.5)
    assert isinstance(desk.admit("new"), Admitted)
    desk.send("new", 10, 0.2)
    assert desk.run(12.0) == []
    assert isinstance(desk.admit("third", Newcomer("h264", fps=5)), Admitted)


def test_one_late_stream_among_three_is_late_by_itself() -> None:
    desk = Desk()
    for stream_id in ("one", "two", "three"):
        desk.establish(stream_id, 30, 0.2)
    desk.latency_s["three"] = 2.0
    assert isinstance(desk.admit("new"), Admitted)
    desk.send("new", 30, 0.2)
    assert desk.run(6.0) == []
    desk.latency_s["two"] = 2.0
    assert [eviction.stream_id for eviction in desk.run(4.0)] == ["new"]


def test_a_stream_whose_pictures_grow_is_promised_its_new_pace() -> None:
    desk = Desk()
    desk.establish("one", 10, 0.2)
    desk.latency_s["one"], desk.pixels["one"] = 0.09, 4 * HD
    desk.run(6.0)
    assert isinstance(desk.admit("new"), Admitted)


def test_who_needs_more_than_it_says_is_held_off_ever_longer() -> None:
    desk = Desk()
    desk.establish("elder", 30, 1.2)
    claims = Newcomer("h264", 640, 360, 5)
    closed_at = []
    while desk.now < 1200.0:
        if "liar" not in desk.sending and isinstance(desk.admit("liar", claims), Admitted):
            desk.send("liar", 60, 1.0)
        closed_at += [desk.now for _ in desk.run(REVIEW_S)]
        if len(closed_at) == 4 and "honest" not in desk.sending:
            desk.establish("honest", 5, 0.05, Newcomer("jpeg", 640, 360, 5))
    gaps_s = [later - earlier for earlier, later in pairwise(closed_at)]
    assert [round(gap / 60) for gap in gaps_s] == [1, 2, 4, 8, 1]


def test_who_was_closed_for_its_load_comes_back_when_that_fits() -> None:
    desk = Desk()
    desk.establish("elder", 30, 1.2)
    claims = Newcomer("h264", 640, 360, 5)
    assert isinstance(desk.admit("liar", claims), Admitted)
    desk.send("liar", 60, 1.0)
    assert len(desk.run(8.0)) == 1
    assert isinstance(desk.admit("liar", claims), Refused)
    assert isinstance(desk.admit("honest", Newcomer("h264", 640, 360, 4)), Admitted)
    desk.admission.close("elder")
    answer = desk.admit("liar", claims)
    assert isinstance(answer, Admitted)
    assert answer.cores == pytest.approx(1.0, rel=0.1)


def test_an_elastic_stream_takes_nothing_from_a_newcomer_but_may_not_make_others_late() -> None:
    desk = Desk()
    elastic = Newcomer("h264", is_elastic=True)
    desk.establish("file", 100, 2.0, elastic)
    live = desk.admit("live", Newcomer("h264"))
    assert isinstance(live, Admitted)
    assert live.cores == pytest.approx(30 * 0.02), "the rate of the file is nobody's rate"
    desk.admission.close("live")
    assert isinstance(desk.admit("live", Newcomer("h264", 1920, 1080, 240)), Admitted), "whom could it harm"
    desk.send("live", 30, 1.2)
    assert desk.run(12.0) == []
    assert isinstance(desk.admit("second file", elastic), Admitted)
    desk.send("second file", 100, 2.0)
    desk.latency_s["live"] = 0.2
    assert [eviction.stream_id for eviction in desk.run(5.0)] == ["second file"]


def test_a_late_review_does_not_take_a_gap_for_patience() -> None:
    desk = Desk()
    for stream_id in ("one", "two"):
        assert isinstance(desk.admit(stream_id), Admitted)
        desk.send(stream_id, 30, 1.2)
    assert desk.run(2.0) == []
    desk.now += 20.0
    assert desk.admission.review(desk.now) == ()
