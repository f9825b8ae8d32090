"""Streams that push at their own pace through services that come and go, and what must be true of their answers."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.mask_receiver import MaskMessage
from service.mask_stream import MaskStream
from service.wire import encode_picture
from tests.bitstreams import encode_codes, read_code
from tests.conftest import Server

WAIT_S = 30.0
FPS = 25.0
PICTURES = [encode_picture(np.full((36, 64, 3), level, np.uint8), "jpeg") for level in (0, 255)]
UNITS = {codec: encode_codes(range(100), codec, keys_every=10) for codec in ("h264", "hevc")}
_KEY_SLICE = b"\0\0\1\x65"
UNITS["h264 once"] = [  # parameter sets before the first key frame alone
    unit[unit.index(_KEY_SLICE) :] if number and _KEY_SLICE in unit else unit
    for number, unit in enumerate(UNITS["h264"])
]
Launch = Callable[..., Server]


class Pusher(threading.Thread):
    """A stream at its own pace: frame n (from 0) has the stamp n + 1."""

    def __init__(self, stream: MaskStream, frames: Iterator[bytes]) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.pushed = 0
        self.answers: list[MaskMessage] = []
        self.failure: BaseException | None = None
        self.is_done = threading.Event()
        self._frames = frames

    def run(self) -> None:
        try:
            with self.stream:
                while not self.is_done.wait(1 / FPS):
                    self.push()
                    self.answers += self.stream.arrived()
                self.answers += self.stream.finish()
        except BaseException as error:  # noqa: BLE001 - judged by the test
            self.failure = error

    def begin(self, answers: int = 5) -> None:
        """Start, and wait until more than so many masks have come."""
        self.start()
        wait_until(lambda: len(self.answers) > answers)

    def push(self) -> None:
        self.pushed += 1
        self.stream.push(next(self._frames), captured_at_us=self.pushed)

    def end(self) -> None:
        self.is_done.set()
        self.join(WAIT_S)
        assert not self.is_alive()
        assert self.failure is None, self.failure


def frames_of(codec: str) -> Iterator[bytes]:
    return itertools.cycle(UNITS.get(codec, PICTURES))


def number_of(codec: str, message: MaskMessage) -> int:
    """Which frame a mask shows, as far as the picture says it."""
    return read_code(message.mask_hw) if codec in UNITS else int(message.mask_hw.all())


def check(pusher: Pusher, codec: str) -> None:
    """In order, each once, of its own frame; what has no answer was dropped by a cause."""
    stamps = [message.captured_at_us for message in pusher.answers]
    assert stamps == sorted(set(stamps)) == [message.sequence for message in pusher.answers]
    period = len(UNITS[codec]) if codec in UNITS else 2
    assert [number_of(codec, message) for message in pusher.answers] == [
        (stamp - 1) % period for stamp in stamps
    ]
    counts = [
        (message.received, sum(message.dropped.values()), message.skipped) for message in pusher.answers
    ]
    assert counts == sorted(counts) and all(
        sorted(column) == list(column) for column in zip(*counts, strict=True)
    )
    last = pusher.answers[-1]
    assert last.sequence == pusher.pushed, "the newest frame is always answered"
    assert last.received == pusher.pushed
    assert len(stamps) + sum(last.dropped.values()) + last.skipped + pusher.stream.unread == pusher.pushed


def start_pair(launch_server: Launch, monkeypatch: pytest.MonkeyPatch, **settings: str) -> list[Server]:
    """Two services; every client tries the first one first."""
    monkeypatch.setattr("service.replicas.random.sample", lambda given, count: list(given))
    with ThreadPoolExecutor(2) as starters:
        return list(starters.map(lambda _: launch_server(SURGSEG_ADMISSION="0", **settings), range(2)))


def wait_until(is_true: Callable[[], object]) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.01)
