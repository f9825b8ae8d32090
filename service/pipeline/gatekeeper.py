"""Admission made safe for threads: who may open a stream, and who has to go again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from service.errors import OverloadedError
from service.frames import SegmentedFrame
from service.pipeline.admission import Admission, Admitted, Eviction
from service.pipeline.processor_costs import Newcomer
from service.pipeline.workers import Worker

_REVIEW_EVERY_S = 0.5
# Sockets, wake-ups and the kernel take about a seventh on top of what is measured frame by frame.
_OVERHEAD = 1.15


class Gatekeeper:
    """Asks `Admission` at every door, feeds it what is measured, and acts on its reviews in a thread of its own.

    `mask_cost_s` is the processor time of one inference, over all threads, set when the backend is open. `evict` closes
    a stream with an error. Any thread may call any method.
    """

    def __init__(
        self,
        cores: int,
        is_enabled: bool,
        evict: Callable[[str, OverloadedError], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.mask_cost_s = 0.0
        self._admission = Admission(cores, is_enabled=is_enabled)
        self._evict = evict
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._worker = Worker("surgseg-gatekeeper", self._work, on_failure)
        self._is_enabled = is_enabled

    def start(self) -> None:
        """Begin to review, where admission is on."""
        if self._is_enabled:
            self._worker.start()

    def stop(self, timeout_s: float) -> bool:
        """End the reviews; False when that took too long."""
        self._stopping.set()
        return self._worker.join(timeout_s)

    def learn(self, codec: str, pixels: int, picture_s: float) -> None:
        """Say beforehand what one picture of a codec costs, so that the first streams are not let in blindly."""
        with self._lock:
            self._admission.learn(codec, pixels, picture_s * _OVERHEAD, self.mask_cost_s * _OVERHEAD)

    def change_model(self, mask_cost_s: float) -> None:
        """Another model makes the masks from now on: what they cost, and how late they were, is learned anew."""
        self.mask_cost_s = mask_cost_s
        with self._lock:
            self._admission.change_model(mask_cost_s * _OVERHEAD, time.monotonic())

    def admit(self, stream_id: str, newcomer: Newcomer) -> None:
        """Let a stream in. Raises OverloadedError, which says when to try again."""
        with self._lock:
            answer = self._admission.admit(stream_id, newcomer, time.monotonic())
        if not isinstance(answer, Admitted):
            raise _refuse(answer.reason, answer.retry_after_s)

    def receive(self, stream_id: str) -> None:
        """A frame has arrived."""
        with self._lock:
            self._admission.receive(stream_id, time.monotonic())

    def serve(self, segmented: SegmentedFrame) -> None:
        """A frame's mask has been encoded."""
        frame = segmented.frame
        with self._lock:
            self._admission.serve(
                frame.stream_id,
                pixels=frame.fit.source_width * frame.fit.source_height,
                picture_s=frame.cost_s * _OVERHEAD,
                mask_s=(self.mask_cost_s + segmented.cost_s) * _OVERHEAD,
                latency_s=frame.timeline.total_s,
                now=time.monotonic(),
            )

    def measure_cores(self) -> tuple[float, float]:
        """Cores that the open streams need or have reserved, and those that they may use now."""
        now = time.monotonic()
        with self._lock:
            return self._admission.count_used(now), self._admission.find_limit(now)

    def close(self, stream_id: str) -> None:
        """The stream has gone."""
        with self._lock:
            self._admission.close(stream_id)

    def _work(self) -> None:
        while not self._stopping.wait(_REVIEW_EVERY_S):
            for eviction in self._review():
                self._evict(eviction.stream_id, _refuse(eviction.reason, eviction.retry_after_s))

    def _review(self) -> tuple[Eviction, ...]:
        with self._lock:
            return self._admission.review(time.monotonic())


def _refuse(reason: str, retry_after_s: float) -> OverloadedError:
    return OverloadedError(
        reason,
        "room for one more stream beside those already served",
        f"Try again in {retry_after_s:.0f} s, close a stream, or use a faster machine.",
        retry_after_s=retry_after_s,
    )
