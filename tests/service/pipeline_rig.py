"""A real pipeline with real threads, on a backend that a test can hold, break or watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from service.contract.bundle import Bundle
from service.errors import SurgsegError
from service.pipeline.journal import SILENT, Journal
from service.pipeline.latest_frames import Mode
from service.pipeline.pipeline import Pipeline
from service.pipeline.pushed_stream import PushCallbacks, PushedStream
from service.pipeline.stream_terms import StreamTerms
from service.pipeline.subscription import Subscription
from service.settings import Settings
from service.streams.decoded_video import StreamState
from service.streams.pushed import LOSSLESS_PUSHES
from service.telemetry import Telemetry

WAIT_S = 20.0


class HeldBackend:
    """Thresholds like the small bundle's graph; each inference waits for `gate`, and `fault` breaks it."""

    name = "held"
    precision = "float32"
    version = "1"

    def __init__(self, batch_sizes: tuple[int, ...], concurrency: int) -> None:
        self.batch_sizes = batch_sizes
        self.concurrency = concurrency
        self.inside = 0
        self.is_wrong_beside_others = False
        self.lasts_s = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fault: Exception | None = None
        self.calls: list[int] = []
        self.urgent: list[bool] = []
        self.slow_first = threading.Event()
        """Set: an inference that begins alone lasts until one that began beside it is over."""
        self._overtaken = threading.Event()
        self.is_closed = False

    def segment(self, images_nhwc: np.ndarray, *, is_urgent: bool = True) -> np.ndarray:
        self.inside += 1
        self.urgent.append(is_urgent)
        is_first = self.inside == 1
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if self.slow_first.is_set() and is_first:
            assert self._overtaken.wait(WAIT_S)
        self._overtaken.set()
        time.sleep(self.lasts_s)
        is_beside_others = self.inside > 1
        self.inside -= 1
        if self.fault is not None:
            raise self.fault
        self.calls.append(len(images_nhwc))
        is_wrong = self.is_wrong_beside_others and is_beside_others
        return ((images_nhwc.sum(axis=3, dtype=np.uint16) > 3 * 127) ^ is_wrong).astype(np.uint8)

    def close(self) -> None:
        self.is_closed = True

    def hold(self) -> None:
        """Let the next inference begin and not end; returns at once."""
        self.entered.clear()
        self.gate.clear()


@dataclass
class Rig:
    pipeline: Pipeline
    backend: HeldBackend
    telemetry: Telemetry
    fatal: list[BaseException]
    streams: list[PushedStream] = field(default_factory=list)
    errors: list[tuple[int, SurgsegError]] = field(default_factory=list)
    failures: list[SurgsegError] = field(default_factory=list)
    states: list[tuple[StreamState, str]] = field(default_factory=list)
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(LOSSLESS_PUSHES))
    woken: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def open(self, mode: Mode = Mode.LATEST, codec: str = "png") -> tuple[PushedStream, Subscription]:
        stream = self.pipeline.open_pushed(
            codec,
            StreamTerms(mode),
            PushCallbacks(
                on_lost=lambda sequence, error: self.errors.append((sequence, error)),
                on_room=self.room.release,
                on_failure=self.failures.append,
                on_state=lambda state, reason: self.states.append((state, reason)),
            ),
        )
        self.streams.append(stream)
        return stream, stream.subscribe("png", mode, self.woken.release)

    def push_lossless(self, stream: PushedStream, data: bytes, captured_at_us: int) -> None:
        assert self.room.acquire(timeout=WAIT_S)
        stream.push(data, captured_at_us)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)


@contextmanager
def running_rigs(bundle: Bundle) -> Iterator[Callable[..., Rig]]:
    """A function that makes a rig, `make(*, is_started, concurrency, journal, **settings)`; all stop at the end."""
    rigs: list[Rig] = []

    def make(
        *, is_started: bool = True, concurrency: int = 1, journal: Journal = SILENT, **options: Any
    ) -> Rig:
        settings = Settings(_env_file=None, **{"deadline_s": WAIT_S, "admission": False, **options})
        backend = HeldBackend(settings.batch_sizes, concurrency)
        telemetry = Telemetry(settings.batch_sizes)
        fatal: list[BaseException] = []
        pipeline = Pipeline(bundle, settings, telemetry, fatal.append, journal, lambda *_: backend)
        rig = Rig(pipeline, backend, telemetry, fatal)
        if is_started:
            pipeline.start().result(WAIT_S)
            eventually(pipeline.is_ready)  # the result wakes us before the pipeline has heard of it
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.backend.gate.set()
        assert rig.pipeline.stop(WAIT_S) or rig.fatal
        for stream in rig.streams:
            assert stream.join(WAIT_S)


def picture(brightness: int) -> bytes:
    """A PNG of one brightness, small so that decoding takes no time."""
    return cv2.imencode(".png", np.full((18, 32, 3), brightness, np.uint8))[1].tobytes()


def eventually(is_true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.002)


def is_conserved(stream: PushedStream) -> bool:
    ledger = stream.ledger
    return ledger.received == ledger.segmented + sum(ledger.dropped.values()) + ledger.pending
