"""The threads that run the backend: the first opens it and proves it, all feed it, the last to leave closes it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from service.backends.base import GOLDEN_AGREEMENT, Backend, is_golden, measure_golden
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.errors import BackendError
from service.frames import Frame, SegmentedFrame, Stage
from service.pipeline.latest_frames import Drop
from service.pipeline.waiting_room import WaitingRoom
from service.pipeline.workers import Worker
from service.telemetry import Telemetry

_PROOFS_AT_ONCE = 8
_HELPER_ENDS_S = 10.0
_MOST_IDLE_S = 60.0


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a backend says about itself once it is open."""

    name: str
    precision: Precision
    version: str
    batch_sizes: tuple[int, ...]
    frame_cost_s: float
    """Processor time of one frame's inference, over all threads, measured at start when nothing else runs."""


class Engine:
    """Takes frames from the waiting room, runs them, hands the masks to `publish`, in as many threads as pay.

    An error after start-up is told to `on_failure`: a dead engine must end the process. `drop` counts frames
    whose deadline has passed. When nothing came for `probe_interval_s`, the golden picture is run, so that
    `last_success_at` (monotonic seconds) always speaks of a recent inference.
    """

    def __init__(
        self,
        bundle: Bundle,
        open_backend: Callable[[], Backend],
        *,
        room: WaitingRoom,
        publish: Callable[[Sequence[SegmentedFrame]], None],
        drop: Callable[[Drop], None],
        telemetry: Telemetry,
        probe_interval_s: float,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._bundle = bundle
        self._open_backend = open_backend
        self._room = room
        self._publish = publish
        self._drop = drop
        self._telemetry = telemetry
        self._probe_interval_s = probe_interval_s
        self._on_failure = on_failure
        self._opened: Future[BackendInfo] = Future()
        self._workers = [Worker("surgseg-engine", self._work, self._fail)]
        self.last_success_at = float("-inf")

    def start(self) -> Future[BackendInfo]:
        """Begin to open the backend, warm every batch size and compare the golden picture.

        The result is there when all that is done; it raises BundleError, BackendError, or whatever else the
        runtime raised.
        """
        self._workers[0].start()
        return self._opened

    def stop(self, timeout_s: float) -> bool:
        """Wait until the backend is closed, after the waiting room was; False when that took too long."""
        ends_at = time.monotonic() + timeout_s
        return all(worker.join(max(0.0, ends_at - time.monotonic())) for worker in tuple(self._workers))

    def _fail(self, error: BaseException) -> None:
        if not self._opened.done():
            self._opened.set_exception(error)
        else:
            self._on_failure(error)

    def _work(self) -> None:
        backend = self._open_backend()
        try:
            batch_nhwc = self._make_batch(backend)
            for batch_size in backend.batch_sizes:
                self._run_golden(backend, batch_nhwc, batch_size)
            cost_s = self._prove_at_once(backend)
            helpers = [self._make_helper(backend, number) for number in range(2, backend.concurrency + 1)]
            self._workers += helpers
            for helper in helpers:
                helper.start()
            self._opened.set_result(
                BackendInfo(
                    backend.name, backend.precision, backend.version, backend.batch_sizes, frame_cost_s=cost_s
                )
            )
            self._serve(backend, batch_nhwc, self._probe_interval_s)
            for helper in helpers:
                helper.join(_HELPER_ENDS_S)
        finally:
            backend.close()

    def _make_helper(self, backend: Backend, number: int) -> Worker:
        def work() -> None:
            self._serve(
                backend, self._make_batch(backend), probe_interval_s=math.inf
            )  # one that probes is enough

        return Worker(f"surgseg-engine-{number}", work, self._fail)

    def _make_batch(self, backend: Backend) -> np.ndarray:
        size = self._bundle.card.input_size
        return np.zeros((backend.batch_sizes[-1], size.height, size.width, 3), np.uint8)

    def _prove_at_once(self, backend: Backend) -> float:
        """Calls made at once may take another way through the backend than one alone: it must give the same masks.

        Gives a frame's processor time, which matters when there is so much to do that they are made at once.
        """

        def prove(_: int) -> None:
            batch_nhwc = self._make_batch(backend)
            for _ in range(_PROOFS_AT_ONCE):
                self._run_golden(backend, batch_nhwc, batch_size)

        batch_size = backend.batch_sizes[0]
        with ThreadPoolExecutor(backend.concurrency) as pool:
            used_s = time.process_time()
            list(pool.map(prove, range(backend.concurrency)))
            used_s = time.process_time() - used_s
        return used_s / (_PROOFS_AT_ONCE * backend.concurrency * batch_size)

    def _serve(self, backend: Backend, batch_nhwc: np.ndarray, probe_interval_s: float) -> None:
        limit = _share_of_batch(backend)
        while True:
            probe_at = self.last_success_at + probe_interval_s
            idle_s = min(max(0.0, probe_at - time.monotonic()), _MOST_IDLE_S)
            taken = self._room.take(limit, idle_s)
            if taken is None:
                return
            for drop in taken.drops:
                self._drop(drop)
            if taken.frames:
                segmented = self._run(backend, batch_nhwc, taken.frames)
                self._room.wait_turn(taken)
                self._publish(segmented)
                self._room.done(taken)
            elif not taken.drops and time.monotonic() >= probe_at:
                self._run_golden(backend, batch_nhwc, backend.batch_sizes[0])

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
        self._telemetry.observe_batch(len(frames))
        segmented = []
        for frame, mask_hw in zip(frames, masks_nhw, strict=False):
            frame.timeline.mark(Stage.INFER, self.last_success_at)
            segmented.append(SegmentedFrame(frame, mask_hw.copy()))
        return segmented

    def _run_golden(self, backend: Backend, batch_nhwc: np.ndarray, batch_size: int) -> None:
        """Fill a batch with the golden picture and compare every mask of it. Raises BackendError."""
        batch_nhwc[:batch_size] = self._bundle.golden_image_hwc
        masks_nhw = backend.segment(batch_nhwc[:batch_size])
        expected_shape = (batch_size, *self._bundle.golden_mask_hw.shape)
        if masks_nhw.shape != expected_shape or masks_nhw.dtype != np.uint8:
            raise BackendError(
                f"The backend {backend.name} gave {masks_nhw.dtype} {masks_nhw.shape}.",
                f"uint8 {expected_shape}",
                "Choose another backend with --backend.",
            )
        if not is_golden(self._bundle, backend.precision, masks_nhw):
            agreement = measure_golden(self._bundle, masks_nhw)
            raise BackendError(
                f"The backend {backend.name} in {backend.precision} gives {agreement:.2%} of the labels of the golden "
                "picture.",
                f"at least {GOLDEN_AGREEMENT[backend.precision]:.1%}",
                "Choose another backend with --backend, or make the bundle again and check it.",
            )
        self.last_success_at = time.monotonic()


def _share_of_batch(backend: Backend) -> int:
    """The frames that one thread takes at once: the largest batch size that all together have in the largest batch."""
    fair = max(backend.batch_sizes[0], backend.batch_sizes[-1] // backend.concurrency)
    return max(size for size in backend.batch_sizes if size <= fair)
