"""The threads that run one model: the first opens it and proves it, all feed it, the last to leave closes it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from service.backends.base import Backend
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.frames import Frame, SegmentedFrame, Stage
from service.pipeline.latest_frames import Drop
from service.pipeline.proof import make_batch, prove_backend, run_golden
from service.pipeline.waiting_room import WaitingRoom
from service.pipeline.workers import Worker
from service.telemetry import Telemetry

_HELPER_ENDS_S = 10.0
_MOST_IDLE_S = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a backend says about itself once it is open."""

    name: str
    precision: Precision
    version: str
    batch_sizes: tuple[int, ...]
    frame_cost_s: float
    """Processor time of one frame's inference, over all threads, measured where nothing else runs."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What all engines of a service share.

    `publish` takes the masks of a batch, `drop` counts frames whose deadline has passed, `on_failure` is told of the
    error that ended an engine which serves.
    """

    room: WaitingRoom
    publish: Callable[[Sequence[SegmentedFrame]], None]
    drop: Callable[[Drop], None]
    telemetry: Telemetry
    probe_interval_s: float
    on_failure: Callable[[BaseException], None]


class Engine:
    """Takes frames from the waiting room, runs them, publishes the masks, in as many threads as pay.

    `start` opens the backend; frames are taken from `begin` until `retire`. An error between the two is told to
    `on_failure`: a dead engine must end the process. When nothing came for `probe_interval_s`, the golden picture is
    run, so that `last_success_at` (monotonic seconds) always speaks of a recent inference.
    """

    def __init__(
        self,
        bundle: Bundle,
        open_backend: Callable[[], Backend],
        parts: EngineParts,
        known_cost_s: float | None = None,
    ) -> None:
        """`known_cost_s` is a frame's cost where it has been measured before: then the proof is short."""
        self.bundle = bundle
        self.last_success_at = float("-inf")
        self._open_backend = open_backend
        self._parts = parts
        self._known_cost_s = known_cost_s
        self._opened: Future[BackendInfo] = Future()
        self._lock = threading.Lock()
        self._turn = threading.Event()
        self._is_leaving = False
        self._has_left = threading.Event()
        self._workers = [Worker("surgseg-engine", self._work, self._fail)]

    def start(self) -> Future[BackendInfo]:
        """Begin to open the backend, warm every batch size and compare the golden picture.

        The result is there when all that is done; it raises BundleError, BackendError, or whatever else the
        runtime raised.
        """
        self._workers[0].start()
        return self._opened

    def begin(self) -> None:
        """Take frames, once the backend is open."""
        self._turn.set()

    def retire(self, timeout_s: float) -> bool:
        """Take no more frames, and wait until those taken are published; False when that took too long.

        The backend is closed after that; `stop` waits for it.
        """
        self._leave()
        return self._has_left.wait(timeout_s)

    def abandon(self, error: BaseException) -> None:
        """Wait no longer for the backend: whoever does gets `error`. If it opens after all, it is closed again."""
        with self._lock:
            if not self._opened.done():
                self._opened.set_exception(error)
        self._leave()

    def stop(self, timeout_s: float) -> bool:
        """Wait until the backend is closed; False when that took too long."""
        self._leave()
        ends_at = time.monotonic() + timeout_s
        return all(worker.join(max(0.0, ends_at - time.monotonic())) for worker in tuple(self._workers))

    def _leave(self) -> None:
        self._is_leaving = True
        self._turn.set()
        self._parts.room.wake()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            is_opening = not self._opened.done()
            if is_opening:
                self._opened.set_exception(error)
        if is_opening:
            return
        if self._has_left.is_set():
            _log.warning("The model that was replaced could not be closed: %s", error)
        else:
            self._parts.on_failure(error)

    def _work(self) -> None:
        backend = self._open_backend()
        try:
            if self._tell_opened(self._prove(backend)):
                self._turn.wait()
                self._serve_together(backend)
        finally:
            backend.close()

    def _prove(self, backend: Backend) -> BackendInfo:
        if self._known_cost_s is None:
            cost_s = prove_backend(backend, self.bundle)
        else:
            prove_backend(backend, self.bundle, rounds=1)
            cost_s = self._known_cost_s
        self.last_success_at = time.monotonic()
        return BackendInfo(
            backend.name, backend.precision, backend.version, backend.batch_sizes, frame_cost_s=cost_s
        )

    def _tell_opened(self, info: BackendInfo) -> bool:
        """False when nobody waits for it any more."""
        with self._lock:
            if self._opened.done():
                return False
            self._opened.set_result(info)
        return True

    def _serve_together(self, backend: Backend) -> None:
        helpers = [self._make_helper(backend, number) for number in range(2, backend.concurrency + 1)]
        self._workers += helpers
        for helper in helpers:
            helper.start()
        self._serve(backend, self._parts.probe_interval_s)
        have_ended = [helper.join(_HELPER_ENDS_S) for helper in helpers]
        if all(have_ended):
            self._has_left.set()

    def _make_helper(self, backend: Backend, number: int) -> Worker:
        def work() -> None:
            self._serve(backend, probe_interval_s=math.inf)  # one that probes is enough

        return Worker(f"surgseg-engine-{number}", work, self._fail)

    def _serve(self, backend: Backend, probe_interval_s: float) -> None:
        room = self._parts.room
        batch_nhwc = make_batch(backend, self.bundle)
        limit = _share_of_batch(backend)
        while True:
            probe_at = self.last_success_at + probe_interval_s
            idle_s = min(max(0.0, probe_at - time.monotonic()), _MOST_IDLE_S)
            taken = room.take(limit, idle_s, lambda: self._is_leaving)
            if taken is None:
                return
            for drop in taken.drops:
                self._parts.drop(drop)
            if taken.frames:
                segmented = self._run(backend, batch_nhwc, taken.frames)
                room.wait_turn(taken)
                self._parts.publish(segmented)
                room.done(taken)
            elif not taken.drops and time.monotonic() >= probe_at:
                run_golden(backend, self.bundle, batch_nhwc, backend.batch_sizes[0])
                self.last_success_at = time.monotonic()

    def _run(self, backend: Backend, batch_nhwc: np.ndarray, frames: Sequence[Frame]) -> list[SegmentedFrame]:
        taken_at = time.monotonic()
        for index, frame in enumerate(frames):
            frame.timeline.mark(Stage.WAIT, taken_at)
            batch_nhwc[index] = frame.canvas_hwc
        # Rows beyond the frames keep older pictures: their masks are never looked at.
        batch_size = next(size for size in backend.batch_sizes if size >= len(frames))
        is_urgent = any(frame.deadline_at is not None for frame in frames)
        masks_nhw = backend.segment(batch_nhwc[:batch_size], is_urgent=is_urgent)
        self.last_success_at = time.monotonic()
        self._parts.telemetry.observe_batch(len(frames))
        segmented = []
        for frame, mask_hw in zip(frames, masks_nhw, strict=False):
            frame.timeline.mark(Stage.INFER, self.last_success_at)
            segmented.append(SegmentedFrame(frame, mask_hw.copy(), self.bundle))
        return segmented


def _share_of_batch(backend: Backend) -> int:
    """The frames that one thread takes at once: the largest batch size that all together have in the largest batch."""
    fair = max(backend.batch_sizes[0], backend.batch_sizes[-1] // backend.concurrency)
    return max(size for size in backend.batch_sizes if size <= fair)
