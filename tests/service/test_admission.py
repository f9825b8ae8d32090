"""Who may come in: decided by what was measured, and told with figures."""

from __future__ import annotations

import pytest

from service.pipeline.admission import Admitted, Refused
from service.pipeline.processor_costs import Newcomer
from tests.service.admission_desk import HD, Desk


def test_the_first_stream_is_let_in_whatever_it_needs_and_stays() -> None:
    desk = Desk()
    desk.admission.learn("h264", HD, 0.05, 0.02)
    answer = desk.admit("large", Newcomer("h264", 3840, 2160, 60))
    assert isinstance(answer, Admitted)
    assert answer.cores == pytest.approx(60 * (4 * 0.05 + 0.02))
    desk.send("large", 60, 6.0)
    assert desk.run(60.0) == []


def test_who_does_not_fit_is_told_the_figures() -> None:
    desk = Desk()
    desk.establish("one", 30, 1.3)
    answer = desk.admit("two", Newcomer("h264", 1920, 1080, 15))
    assert isinstance(answer, Refused)
    assert answer.reason == (
        "This stream (h264, 1920 x 1080, 15 fps) would need 0.65 cores, 0.30 of 2 are free (streams may use 1.60)."
    )
    assert isinstance(desk.admit("three", Newcomer("h264", 1920, 1080, 6)), Admitted)


def test_what_was_promised_to_a_stream_that_has_not_begun_is_kept_for_it_a_while() -> None:
    desk = Desk()
    desk.admission.learn("h264", HD, 0.010, 0.007)
    hd30 = Newcomer("h264", 1920, 1080, 30)
    answers = [desk.admit(str(index), hd30) for index in range(8)]
    assert [isinstance(answer, Admitted) for answer in answers] == [True] * 3 + [False] * 5
    desk.run(29.0)
    assert isinstance(desk.admit("later", hd30), Refused)
    desk.run(2.0)
    assert isinstance(desk.admit("later", hd30), Admitted)


@pytest.mark.parametrize(
    ("newcomer", "cores"),
    [
        (Newcomer("h264", 1920, 1080, 30), 30 * 0.017),
        (Newcomer("h264", 1280, 720, 25), 25 * (0.010 / 2.25 + 0.007)),
        (Newcomer("h264", 3840, 2160, 30), 30 * (0.040 + 0.007)),
        (Newcomer("hevc", 1920, 1080, 30), 30 * 0.017),  # of another codec: the nearest in size
        (Newcomer("jpeg", 640, 360, 10), 10 * (0.001 + 0.007)),
        (Newcomer("jpeg", fps=10), 10 * (0.001 + 0.007)),
        (Newcomer("h264"), 50 * 0.017),  # says nothing: like the last of its codec
        (Newcomer("h264", is_elastic=True), 0.0),
    ],
    ids=str,
)
def test_a_newcomer_costs_what_the_nearest_one_cost(newcomer: Newcomer, cores: float) -> None:
    desk = Desk(64)
    desk.admission.learn("jpeg", 640 * 360, 0.001, 0.007)
    assert isinstance(desk.admit("known"), Admitted)
    desk.send("known", 50, 50 * 0.017)
    desk.admission.learn("h264", HD, 0.010, 0.007)
    for _ in range(200):
        desk.admission.serve("known", pixels=HD, picture_s=0.010, mask_s=0.007, latency_s=0.02, now=desk.now)
    for index in range(101):
        desk.admission.receive("known", desk.now + index / 50)
    desk.now += 2.0
    desk.admission.serve("known", pixels=HD, picture_s=0.010, mask_s=0.007, latency_s=0.02, now=desk.now)
    answer = desk.admit("new", newcomer)
    assert isinstance(answer, Admitted)
    assert answer.cores == pytest.approx(cores, rel=1e-6)


def test_pictures_of_another_size_cost_what_they_cost_at_once() -> None:
    desk = Desk()
    desk.establish("one", 10, 0.2)
    desk.pixels["one"] = HD // 9
    desk.send("one", 10, 0.05)
    desk.run(0.5)
    # The mask's part is the mean that it was; of the picture nothing old is left.
    assert desk.admission.count_used(desk.now) < 0.12


def test_a_stream_slower_than_the_window_has_its_load_too() -> None:
    desk = Desk()
    desk.admit("slow", Newcomer("h264", fps=0.2))
    for _ in range(10):
        desk.play("slow", 2.0, 2.0 * 0.5)
        desk.now += 5.0
    assert desk.admission.count_used(desk.now) == pytest.approx(0.2 * 0.5, rel=0.01)


def test_a_stream_that_pauses_keeps_its_place_for_a_while() -> None:
    desk = Desk()
    desk.establish("one", 30, 0.8)
    desk.establish("two", 30, 0.7)
    del desk.sending["two"]
    hd30 = Newcomer("h264", 1920, 1080, 30)
    desk.run(20.0)
    assert isinstance(desk.admit("three", hd30), Refused)
    desk.run(11.0)
    assert isinstance(desk.admit("three", hd30), Admitted)


def test_a_refused_stream_is_let_in_when_another_has_left() -> None:
    desk = Desk()
    for stream_id in ("one", "two", "three"):
        desk.establish(stream_id, 30, 0.5)
    hd30 = Newcomer("h264", 1920, 1080, 30)
    assert isinstance(desk.admit("four", hd30), Refused)
    desk.admission.close("two")
    assert isinstance(desk.admit("four", hd30), Admitted)


def test_when_to_come_again_depends_on_how_long_the_others_have_stayed() -> None:
    desk = Desk()
    desk.establish("one", 30, 1.5)
    hd30 = Newcomer("h264", 1920, 1080, 30)
    waits_s = []
    for seconds in (0.0, 30.0, 3600.0):
        desk.run(seconds)
        answer = desk.admit("two", hd30)
        assert isinstance(answer, Refused)
        waits_s.append(answer.retry_after_s)
    assert waits_s == [11.0, 41.0, 120.0]


def test_the_wait_is_some_seconds_at_least() -> None:
    desk = Desk()
    desk.admission.learn("h264", HD, 0.03, 0.01)
    desk.admit("one", Newcomer("h264", 1920, 1080, 30))
    answer = desk.admit("two", Newcomer("h264", 1920, 1080, 30))
    assert isinstance(answer, Refused)
    assert answer.retry_after_s == 5.0


def test_switched_off_it_lets_everybody_in_and_nobody_go() -> None:
    desk = Desk(is_enabled=False)
    for index in range(20):
        assert desk.admit(str(index)) == Admitted(None)
        desk.send(str(index), 30, 1.0)
    desk.latency_s = dict.fromkeys(desk.sending, 1.0)
    assert desk.run(20.0) == []


def test_a_stream_cannot_come_in_twice_and_a_stranger_is_ignored() -> None:
    desk = Desk()
    desk.admit("one")
    with pytest.raises(ValueError, match="open"):
        desk.admit("one")
    desk.play("images-1", 30, 1.0)
    desk.admission.close("images-1")
    assert desk.admission.count_used(desk.now) == 0.0
