"""New and broken streams are decoded with what sound ones leave: the rule, and what a decoder's threads make of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from service.streams.standing import Standing

from service.contract.bundle import open_bundle
from service.pipeline.latest_frames import Mode
from service.pipeline.pushed_stream import PushedStream
from service.streams.pushed_video import PushedVideo
from tests.bitstreams import encode_codes
from tests.service.pipeline_rig import WAIT_S, Rig, running_rigs

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no idle policy")


@pytest.fixture
def make_rig(small_bundle: Path) -> Iterator[Callable[..., Rig]]:
    with running_rigs(open_bundle(small_bundle)) as make:
        yield make


def test_a_stream_is_proven_after_the_time_without_damage() -> None:
    standing = Standing(3.0, now=10.0)
    assert not standing.is_proven(12.9) and standing.is_proven(13.0)
    standing.note_damage(14.0)
    assert not standing.is_proven(16.9) and standing.is_proven(17.0)


def test_no_time_to_prove_itself_is_an_equal_share_at_once() -> None:
    assert Standing(0.0, now=10.0).is_proven(10.0)


def gives_way(stream: PushedStream) -> bool:
    """Whether the stream's decoder has a thread of the idle policy now."""
    assert isinstance(stream.source, PushedVideo)
    pid = stream.source.decoder_pid
    if pid is None:
        return False
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended since
            if os.sched_getscheduler(int(thread.name)) == os.SCHED_IDLE:
                return True
    return False


def push_until(stream: PushedStream, units: Iterator[tuple[int, bytes]], is_so: Callable[[], bool]) -> None:
    """Push at the pace of a camera until something is so."""
    gives_up_at = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < gives_up_at
        number, unit = next(units)
        stream.push(unit, number)
        time.sleep(0.02)


def test_a_decoder_gives_way_until_its_stream_has_been_sound_and_again_after_damage(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig(decoder_proof_s=0.5)
    stream, _ = rig.open(codec="h264")
    units = encode_codes(range(20), keys_every=10)
    endless = ((number, units[number % 20]) for number in count())
    push_until(stream, endless, lambda: gives_way(stream))
    push_until(stream, endless, lambda: not gives_way(stream) and stream.ledger.segmented > 0)
    served = stream.ledger.segmented
    noise = ((number, units[0][:5] + os.urandom(400)) for number in count(1000))
    push_until(stream, noise, lambda: gives_way(stream))
    push_until(stream, endless, lambda: not gives_way(stream))
    push_until(stream, endless, lambda: stream.ledger.segmented > served)


def test_a_lossless_stream_has_nothing_to_prove(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(decoder_proof_s=60.0)
    stream, _ = rig.open(Mode.EVERY, "h264")
    for number, unit in enumerate(encode_codes(range(4))):
        rig.push_lossless(stream, unit, number)
    while stream.ledger.received < 4 or not stream.ledger.segmented:
        assert not gives_way(stream)
        time.sleep(0.01)
    assert not gives_way(stream)
