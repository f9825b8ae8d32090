"""Bitstreams through a real pipeline and real decoder processes: identity, accounts, and what a lost decoder costs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from service.contract.bundle import open_bundle
from service.contract.masks import decode_mask
from service.frames import DropReason
from service.pipeline.latest_frames import Mode
from service.pipeline.pushed_stream import PushedStream
from service.pipeline.subscription import Answer
from service.streams.decoded_video import StreamState
from service.streams.pushed_video import PushedVideo
from tests.bitstreams import encode_codes, encode_units, read_code
from tests.service.pipeline_rig import Rig, eventually, is_conserved, running_rigs
from tests.service.pushed_units import codes, collect, push_and_collect

CODECS = ["h264", "hevc"]


@pytest.fixture
def make_rig(small_bundle: Path) -> Iterator[Callable[..., Rig]]:
    with running_rigs(open_bundle(small_bundle)) as make:
        yield make


def decoder_pid(stream: PushedStream) -> int:
    assert isinstance(stream.source, PushedVideo)
    eventually(lambda: stream.source.decoder_pid is not None)  # type: ignore[union-attr]
    pid = stream.source.decoder_pid
    assert pid is not None
    return pid


@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_of_a_lossless_stream_is_answered_in_order(
    make_rig: Callable[..., Rig], codec: str
) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY, codec)
    answers = push_and_collect(rig, stream, mailbox, encode_codes(range(40), codec), 40)
    assert codes(answers) == list(range(40))
    frames = [answer.segmented.frame for answer in answers]
    assert [frame.sequence for frame in frames] == list(range(1, 41))
    assert [frame.captured_at_us for frame in frames] == list(range(1, 41))
    assert (stream.ledger.received, stream.ledger.segmented, stream.ledger.dropped) == (40, 40, {})
    assert rig.states[0][0] is StreamState.RUNNING


@pytest.mark.parametrize("codec", CODECS)
def test_reordered_pictures_keep_their_own_clocks(make_rig: Callable[..., Rig], codec: str) -> None:
    """With B-frames units come in decoding order; each mask still carries the clock of its own unit."""
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY, codec)
    tuned = {"tune": "psnr", "preset": "medium"} if codec == "h264" else {"tune": "psnr", "preset": "fast"}
    units = encode_codes(range(20), codec, keys_every=20, **tuned)
    answers = push_and_collect(rig, stream, mailbox, units, 12)
    shown = codes(answers)
    sequences = [answer.segmented.frame.sequence for answer in answers]
    assert shown == sorted(shown)
    assert sequences != sorted(sequences), "the encoder reordered nothing, so this proves nothing"
    assert [answer.segmented.frame.captured_at_us for answer in answers] == sequences


def test_a_live_stream_drops_only_what_is_superseded_and_masks_stay_with_their_frames(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(codec="h264")
    units = encode_codes(range(100))
    rig.backend.hold()
    answers: list[Answer] = []
    for number, unit in enumerate(units):
        stream.push(unit, number + 1)
        time.sleep(0.004)
        if number % 20 == 19:
            rig.backend.gate.set() if number % 40 == 19 else rig.backend.hold()
    rig.backend.gate.set()
    eventually(lambda: stream.ledger.pending == 0)
    while (answer := mailbox.take()) is not None:
        answers.append(answer)
    assert stream.ledger.received == 100
    assert stream.ledger.segmented + sum(stream.ledger.dropped.values()) == 100
    assert stream.ledger.dropped[DropReason.SUPERSEDED] > 0
    assert codes(answers) == [answer.segmented.frame.captured_at_us - 1 for answer in answers]


def test_units_before_the_first_key_frame_and_damaged_ones_are_counted_by_cause(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(codec="h264")
    units = encode_codes(range(20), keys_every=5)
    for unit in units[3:5]:
        stream.push(unit, 1)
    stream.push(b"no start code", 1)
    for number, unit in enumerate(units[5:15]):
        damaged = unit[:40] + bytes(20) + unit[60:90] if number == 7 else unit
        stream.push(damaged, 1)
        time.sleep(0.01)
    eventually(lambda: stream.ledger.pending == 0)
    assert stream.ledger.dropped[DropReason.AWAITING_KEY] == 2
    assert stream.ledger.dropped[DropReason.UNDECODABLE] >= 1
    assert is_conserved(stream)
    assert rig.errors[0][0] == 3
    assert "Annex B" in str(rig.errors[0][1])
    assert mailbox.take() is not None
    assert not rig.failures


def test_the_size_may_change_in_mid_stream(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY, "h264")
    sizes = [(320, 192), (192, 320), (1280, 720)]
    units = [unit for width, height in sizes for unit in encode_codes([1, 2, 3], width=width, height=height)]
    expected = [(width, height, number) for width, height in sizes for number in (1, 2, 3)]
    answers = push_and_collect(rig, stream, mailbox, units, len(expected))
    fits = [answer.segmented.frame.fit for answer in answers]
    found = [
        (fit.source_width, fit.source_height, code) for fit, code in zip(fits, codes(answers), strict=True)
    ]
    assert found == expected


def test_a_picture_beyond_the_limit_ends_the_stream_with_a_reason(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_pixels=100_000, decoder_restarts=1)
    stream, _ = rig.open(codec="h264")
    unit = encode_codes([1], width=640, height=480)[0]

    def fails() -> bool:
        stream.push(unit, 1)
        time.sleep(0.02)
        return bool(rig.failures)

    eventually(fails)
    assert "640 x 480" in str(rig.failures[0])
    assert "100000" in str(rig.failures[0])
    stream.close()
    assert is_conserved(stream)


@pytest.mark.parametrize("lose", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_lost_decoder_costs_the_frames_up_to_the_next_key_frame(
    make_rig: Callable[..., Rig], lose: signal.Signals
) -> None:
    """Killed, crashed, or hung: another one goes on, a neighbour notices nothing, every frame has one cause."""
    rig = make_rig(decoder_hang_s=0.5)
    stream, mailbox = rig.open(codec="h264")
    neighbour, _ = rig.open(codec="hevc")
    units, others = encode_codes(range(200)), encode_codes(range(200), "hevc")
    lost_at = 0.0
    back_after_s = None
    lost = 0
    for number in range(200):
        if number == 20:
            lost = decoder_pid(stream)
            os.kill(lost, lose)
            lost_at = time.monotonic()
        stream.push(units[number], number + 1)
        neighbour.push(others[number], number + 1)
        time.sleep(0.02)
        while (answer := mailbox.take()) is not None:
            assert read_code(decode_mask(answer.payload, "png")) == answer.segmented.frame.captured_at_us - 1
            if lost_at and back_after_s is None and stream.ledger.dropped.get(DropReason.DECODER_LOST):
                back_after_s = time.monotonic() - lost_at
        if back_after_s is not None and number > 80:
            break
    assert back_after_s is not None
    assert back_after_s < 3.0
    assert decoder_pid(stream) != lost
    eventually(lambda: stream.ledger.pending == 0 and neighbour.ledger.pending == 0)
    assert is_conserved(stream)
    assert set(neighbour.ledger.dropped) <= {DropReason.SUPERSEDED}
    restarts = [reason for state, reason in rig.states if state is StreamState.RESTARTING]
    named = {signal.SIGSTOP: "not answered"}.get(lose, lose.name)
    assert len(restarts) == 1
    assert named in restarts[0]


def test_a_decoder_that_wants_too_much_memory_ends_alone(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(decoder_memory_bytes=30_000_000, decoder_restarts=1)
    stream, _ = rig.open(codec="h264")
    for unit in encode_codes([1] * 40, width=3840, height=2160, keys_every=1):
        stream.push(unit, 1)
        time.sleep(0.05)
        if rig.failures:
            break
    eventually(lambda: bool(rig.failures) or stream.ledger.pending == 0)
    assert stream.ledger.segmented == 0
    assert not rig.fatal
    healthy, mailbox = rig.open(codec="h264")
    for unit in encode_codes(range(5)):
        healthy.push(unit, 1)
    assert collect(rig, mailbox, 1)


def test_a_closed_stream_leaves_no_process_thread_or_descriptor(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    units = encode_codes(range(10))

    def run_one() -> int:
        stream, mailbox = rig.open(codec="h264")
        for unit in units:
            stream.push(unit, 1)
        collect(rig, mailbox, 1)
        pid = decoder_pid(stream)
        stream.close()
        assert stream.join(5)
        return pid

    def count() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    run_one()
    before = count()
    pids = [run_one() for _ in range(5)]
    eventually(lambda: count() <= before)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_colours_and_brightness_are_those_of_the_video(make_rig: Callable[..., Rig]) -> None:
    """The mean of a flat picture decides the mask: 122 and 133 fall on two sides of the threshold of 127."""
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY, "h264")
    flats = [np.full((192, 320, 3), value, np.uint8) for value in (120, 135, 120, 135)]
    answers = push_and_collect(rig, stream, mailbox, encode_units(flats, qp="5"), 4)
    means = [decode_mask(answer.payload, "png").mean() for answer in answers]
    assert means == [0, 1, 0, 1]
