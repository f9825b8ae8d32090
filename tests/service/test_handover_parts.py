"""A stream that moves before its replica has gone: the numbers of its frames, where they begin, what is said. Pure."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.handover import Beginnings, Handover
from service.unanswered import UnansweredFrames
from service.wire import END, MaskHeader, is_end
from tests.bitstreams import encode_codes


def header(sequence: int, received: int = 0, dropped: dict[str, int] | None = None) -> MaskHeader:
    return MaskHeader(sequence, 0, None, 8, 8, "png", {}, dropped or {}, received or sequence, 0, model="")


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), st.booleans(), st.booleans())
def test_frames_of_two_connections_keep_their_numbers(
    before: int, after: int, answered: int, keeps: bool, is_whole: bool
) -> None:
    """`before` go to the connection that leaves, `after` to the next one; some of the first have no answer."""
    frames = UnansweredFrames("every" if keeps else "latest", keeps_messages=keeps)
    for _ in range(before):
        frames.push(frames.pushed + 101, b"x")
    frames.split()
    for _ in range(after):
        frames.push(frames.pushed + 101, b"x")
    answered = min(before, answered)
    assert [frames.answer(header(number)).sequence for number in range(1, answered + 1)] == list(
        range(1, answered + 1)
    )
    assert frames.has_to_repeat == (keeps and answered < before)
    loss = frames.follow(is_whole=is_whole)
    assert loss.frames == (0 if is_whole else before - answered)
    if loss.sequences is not None:
        assert loss.sequences == (answered + 1, before)
        assert loss.captured_at_us == (answered + 101, before + 100)
    moved = [frames.answer(header(number)) for number in range(1, after + 1)]
    assert [each.sequence for each in moved] == list(range(before + 1, before + after + 1))
    assert [each.received for each in moved] == list(range(before + 1, before + after + 1))
    assert frames.settled == frames.pushed == before + after


def test_what_was_dropped_after_the_last_answer_counts_too() -> None:
    frames = UnansweredFrames("latest", keeps_messages=False)
    for _ in range(4):
        frames.push(0, b"x")
    frames.answer(header(2, 2, {"superseded": 1}))
    frames.split()
    frames.push(0, b"x")
    frames.account({"superseded": 1, "deadline": 2}, 0)
    assert frames.follow(is_whole=True).frames == 0
    moved = frames.answer(header(1, 1))
    assert (moved.sequence, moved.received, moved.dropped) == (5, 5, {"superseded": 1, "deadline": 2})


def test_a_bitstream_begins_at_a_key_frame_with_its_parameter_sets() -> None:
    first, *others = encode_codes(range(12), "h264", keys_every=10)
    key = others[9]
    bare = key[key.index(b"\0\0\1\x65") :]
    beginnings = Beginnings("h264")
    assert beginnings.look_at(first) == (first, True)
    assert beginnings.look_at(others[0]) == (others[0], False)
    assert beginnings.look_at(b"no start code") == (b"no start code", False)
    beginnings.seek()
    assert beginnings.look_at(others[1]) == (others[1], False)
    payload, can_begin = beginnings.look_at(bare)
    assert can_begin and payload.endswith(bare) and len(payload) > len(bare)
    assert beginnings.look_at(others[10]) == (others[10], False)
    assert not beginnings.are_everywhere and Beginnings("jpeg").are_everywhere
    assert Beginnings("jpeg").look_at(b"any") == (b"any", True)


@pytest.mark.parametrize("said", [{}, {"timeout_s": "5"}, {"timeout_s": -1}, {"timeout_s": 1e9}])
def test_a_leaving_service_that_names_no_sound_time_gets_a_usual_one(said: dict[str, Any]) -> None:
    assert Handover.begin(said).ends_at - time.monotonic() == pytest.approx(5.0, abs=1.0)


def test_only_one_text_ends_a_stream() -> None:
    assert is_end(END) and is_end('{"type": "end", "why": "no more"}')
    texts = ["", "end", "[]", '"end"', '{"type": "ready"}', '{"type": 1}', "{" * 900, END + " " * 2000]
    assert not any(is_end(text) for text in texts)
