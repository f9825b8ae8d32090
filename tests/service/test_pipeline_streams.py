"""Streams through the real pipeline: order, drops, back-pressure, accounts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from service.contract.bundle import open_bundle
from service.contract.masks import decode_mask
from service.errors import InvalidPictureError, UnavailableError
from service.frames import DropReason
from service.pipeline.latest_frames import Mode
from service.streams.pushed import LOSSLESS_PUSHES
from tests.service.pipeline_rig import WAIT_S, Rig, eventually, is_conserved, picture, running_rigs


@pytest.fixture
def make_rig(small_bundle: Path) -> Iterator[Callable[..., Rig]]:
    with running_rigs(open_bundle(small_bundle)) as make:
        yield make


def test_a_mask_is_computed_from_its_own_frame(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open()
    for number, brightness in enumerate([200, 10, 220, 30], start=1):
        assert stream.push(picture(brightness), captured_at_us=number) == number
        assert rig.woken.acquire(timeout=WAIT_S)
        answer = mailbox.take()
        assert answer is not None
        assert answer.segmented.frame.captured_at_us == number
        mask_hw = decode_mask(answer.payload, "png")
        assert mask_hw.shape == (288, 512)
        assert (mask_hw == (brightness > 127)).all()
        assert set(answer.segmented.frame.timeline.durations_s()) == {
            "decode", "prepare", "wait", "infer", "encode",
        }  # fmt: skip


def test_the_newest_frame_wins_and_the_others_are_counted(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open()
    rig.backend.hold()
    stream.push(picture(0), 0)
    assert rig.backend.entered.wait(WAIT_S)
    for number in range(1, 6):
        stream.push(picture(0), number)
        assert is_conserved(stream)
    eventually(lambda: stream.ledger.pending == 2)
    rig.backend.gate.set()
    eventually(lambda: stream.ledger.pending == 0)
    assert stream.ledger.dropped == {DropReason.SUPERSEDED: 4}
    assert stream.ledger.segmented == 2
    answer = mailbox.take()
    assert answer is not None
    assert answer.segmented.frame.captured_at_us == 5
    assert mailbox.skipped == 1
    assert rig.metric("surgseg_viewer_skipped_total", stream="1") == 1


def test_a_frame_that_waited_too_long_is_dropped(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(deadline_s=0.05)
    blocker, _ = rig.open()
    late, mailbox = rig.open()
    rig.backend.hold()
    blocker.push(picture(0), 0)
    assert rig.backend.entered.wait(WAIT_S)
    late.push(picture(0), 0)
    time.sleep(0.1)
    rig.backend.gate.set()
    eventually(lambda: late.ledger.pending == 0)
    assert late.ledger.dropped == {DropReason.DEADLINE: 1}
    assert mailbox.take() is None
    assert rig.metric("surgseg_frames_dropped_total", stream="2", reason="deadline") == 1


def test_a_lossless_stream_answers_every_frame_in_order(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY)
    sent = 40
    pusher = threading.Thread(
        target=lambda: [rig.push_lossless(stream, picture(200), number) for number in range(sent)]
    )
    pusher.start()
    got = []
    for _ in range(sent):
        assert rig.woken.acquire(timeout=WAIT_S)
        answer = mailbox.take()
        assert answer is not None
        got.append(answer.segmented.frame.captured_at_us)
    pusher.join(WAIT_S)
    assert got == list(range(sent))
    assert stream.ledger.dropped == {}
    assert stream.ledger.segmented == sent


def test_a_lossless_viewer_who_does_not_read_holds_back_only_its_own_sender(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig(every_depth=3)
    stream, mailbox = rig.open(Mode.EVERY)
    pushed = 0
    while rig.room.acquire(timeout=1.0):
        stream.push(picture(0), pushed)
        pushed += 1
        assert pushed < 50
    # Three places, one frame in the reader's hands, the others waiting to be decoded.
    assert pushed == 4 + LOSSLESS_PUSHES
    assert len(mailbox) == 3
    with pytest.raises(BufferError):
        stream.push(picture(0), pushed)
    other, others_mailbox = rig.open()
    other.push(picture(0), 7)
    eventually(lambda: len(others_mailbox) == 1)
    eventually(lambda: mailbox.take() is None and stream.ledger.pending == 1)
    assert stream.ledger.segmented == pushed
    assert DropReason.SUPERSEDED not in stream.ledger.dropped


def test_a_picture_that_cannot_be_decoded_is_named_counted_and_survived(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open()
    stream.push(b"no picture", 1)
    eventually(lambda: bool(rig.errors))
    sequence, error = rig.errors[0]
    assert sequence == 1
    assert isinstance(error, InvalidPictureError)
    stream.push(picture(200), 2)
    eventually(lambda: len(mailbox) == 1)
    assert stream.ledger.dropped == {DropReason.UNDECODABLE: 1}


def test_a_closed_stream_settles_and_gives_its_slot_back(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_streams=1)
    stream, _ = rig.open()
    with pytest.raises(UnavailableError, match="1 streams are open"):
        rig.open()
    rig.backend.hold()
    for number in range(3):
        stream.push(picture(0), number)
        eventually(lambda: rig.backend.entered.is_set())
    stream.close()
    assert rig.metric("surgseg_streams") == 1, "a frame is still at the engine"
    rig.backend.gate.set()
    eventually(lambda: rig.metric("surgseg_streams") == 0)
    assert stream.ledger.pending == 0
    assert is_conserved(stream)
    assert stream.push(picture(0), 9) == 4
    assert stream.ledger.dropped[DropReason.CLOSED] >= 1
    assert rig.metric("surgseg_stream_fps", stream="1") is None
    assert rig.metric("surgseg_frames_received_total", stream="1") == 4, "its counters stay"
    again, _ = rig.open()
    assert again.label == "1"
    assert again.id != stream.id


def test_each_viewer_gets_its_own_format(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, as_png = rig.open()
    as_rle = stream.subscribe("rle", Mode.LATEST, rig.woken.release)
    stream.push(picture(200), 0)
    eventually(lambda: len(as_png) == 1 and len(as_rle) == 1)
    png, rle = as_png.take(), as_rle.take()
    assert png is not None
    assert rle is not None
    np.testing.assert_array_equal(decode_mask(png.payload, "png"), decode_mask(rle.payload, "rle"))
