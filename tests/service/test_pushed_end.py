"""The end of a pushed stream, as its client has said it: what the decoder holds back comes out, the accounts add up."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.contract.bundle import open_bundle
from service.frames import DropReason
from service.pipeline.latest_frames import Mode
from service.streams.pushed_video import PushedVideo
from tests.bitstreams import encode_codes
from tests.service.pipeline_rig import Rig, eventually, is_conserved, picture, running_rigs
from tests.service.pushed_units import codes, collect, push_and_collect

REORDERING = {"h264": {"tune": "psnr", "preset": "medium"}, "hevc": {"tune": "psnr", "preset": "fast"}}


@pytest.fixture
def make_rig(small_bundle: Path) -> Iterator[Callable[..., Rig]]:
    with running_rigs(open_bundle(small_bundle)) as make:
        yield make


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_pictures_that_a_decoder_held_back_come_out(make_rig: Callable[..., Rig], codec: str) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY, codec)
    units = encode_codes(range(20), codec, keys_every=20, **REORDERING[codec])
    answers = push_and_collect(rig, stream, mailbox, units, 12)
    assert stream.ledger.pending > 0, "the encoder reordered nothing, so this proves nothing"
    stream.finish()
    answers += collect(rig, mailbox, 20 - len(answers))
    assert codes(answers) == list(range(20))
    eventually(lambda: stream.ledger.pending == 0)
    assert (stream.ledger.received, stream.ledger.segmented, stream.ledger.dropped) == (20, 20, {})
    assert stream.join(5), "its reader has nothing left to read"
    assert rig.failures == []


def test_a_stream_that_ends_before_its_decoder_is_there_is_answered(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY, "h264")
    for number, unit in enumerate(encode_codes(range(3))):
        rig.push_lossless(stream, unit, number + 1)
    stream.finish()
    assert codes(collect(rig, mailbox, 3)) == [0, 1, 2]
    assert stream.join(5)


@pytest.mark.parametrize("codec", ["h264", "png"])
def test_a_stream_of_no_frames_ends_too(make_rig: Callable[..., Rig], codec: str) -> None:
    rig = make_rig()
    stream, _ = rig.open(codec=codec)
    stream.finish()
    assert stream.ledger.pending == 0
    if codec == "h264":
        assert stream.join(5)
    stream.push(picture(0), 1)
    stream.close()
    assert is_conserved(stream)
    assert rig.failures == []


def test_units_of_a_decoder_that_is_lost_at_the_end_are_accounted_for(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY, "h264")
    units = encode_codes(range(20), "h264", keys_every=20, **REORDERING["h264"])
    push_and_collect(rig, stream, mailbox, units, 12)
    assert isinstance(stream.source, PushedVideo) and stream.source.decoder_pid is not None
    os.kill(stream.source.decoder_pid, signal.SIGSTOP)
    stream.finish()
    os.kill(stream.source.decoder_pid, signal.SIGKILL)

    def is_settled() -> bool:
        mailbox.take()  # what came before the decoder stopped holds its place until it is read
        return stream.ledger.pending == 0

    eventually(is_settled)
    lost = 20 - stream.ledger.segmented
    assert lost > 0
    assert stream.ledger.dropped == {DropReason.DECODER_LOST: lost}
    assert len(rig.errors) == lost, "where none may be lost, each is told of"
    assert stream.join(5), "no other decoder is started for nothing"
