"""The accounts of one stream: every frame received is segmented, dropped by cause, or still under way."""

from __future__ import annotations

import threading
from collections.abc import Callable

from service.frames import DecoderLoss, DropReason, SegmentedFrame
from service.pipeline.journal import SILENT, StreamJournal
from service.telemetry import StreamMeter


class Ledger:
    """Counts of one stream since it began. Every method may be called from any thread.

    `received == segmented + sum(dropped) + pending` holds at every instant. `on_settled` is called once: when
    the stream is closed and nothing of it is pending any more; `on_received` for every frame that arrives. `journal`
    is told how every single frame ended.
    """

    def __init__(
        self,
        meter: StreamMeter,
        on_settled: Callable[[], None],
        on_received: Callable[[], None] = lambda: None,
        journal: StreamJournal = SILENT,
    ) -> None:
        self._meter = meter
        self._on_settled = on_settled
        self._on_received = on_received
        self._journal = journal
        self._lock = threading.Lock()
        self._received = 0
        self._segmented = 0
        self._dropped: dict[DropReason, int] = {}
        self._is_closed = False
        self._is_settled = False

    @property
    def received(self) -> int:
        return self._received

    @property
    def segmented(self) -> int:
        return self._segmented

    @property
    def dropped(self) -> dict[DropReason, int]:
        """A copy; a cause that never happened is absent."""
        with self._lock:
            return dict(self._dropped)

    @property
    def fps(self) -> float:
        """Masks per second, as in the metrics."""
        return self._meter.measure_fps()

    @property
    def mask_age_s(self) -> float:
        """Seconds since the last mask, or since the stream was opened where there was none."""
        return self._meter.measure_mask_age()

    @property
    def pending(self) -> int:
        """Frames that were received and are neither segmented nor dropped yet."""
        with self._lock:
            return self._count_pending()

    def receive(self) -> int:
        """Count a frame that has arrived; gives its sequence number, from 1."""
        self._meter.count_received()
        self._on_received()
        with self._lock:
            self._received += 1
            return self._received

    def segment(self, segmented: SegmentedFrame) -> None:
        """Count a frame whose mask is ready; its timeline has all its marks."""
        self._meter.count_segmented(segmented.frame.timeline)
        self._journal.segment(segmented)
        with self._lock:
            self._segmented += 1
        self._settle()

    def drop(self, sequence: int, reason: DropReason, pts_s: float | None = None) -> None:
        """Count a frame that never gave a mask; `pts_s` where it is known."""
        self._meter.count_dropped(reason)
        self._journal.drop(sequence, reason, pts_s)
        with self._lock:
            self._dropped[reason] = self._dropped.get(reason, 0) + 1
        self._settle()

    def skip(self) -> None:
        """Count a mask that a viewer did not get; the frame itself stays segmented."""
        self._meter.count_skipped()

    def restart(self, loss: DecoderLoss) -> None:
        """Count a decoder that was lost and is started again."""
        self._meter.count_restart(loss)

    def close(self) -> None:
        """No frame will be received any more."""
        with self._lock:
            self._is_closed = True
        self._settle()

    def _settle(self) -> None:
        with self._lock:
            if self._is_settled or not self._is_closed or self._count_pending():
                return
            self._is_settled = True
        self._meter.close()
        self._journal.end(self._received, self._segmented, self._dropped)
        self._on_settled()

    def _count_pending(self) -> int:
        return self._received - self._segmented - sum(self._dropped.values())
