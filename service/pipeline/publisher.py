"""From label maps to viewers: each mask is encoded once per requested format."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from service.contract.bundle import Bundle
from service.contract.geometry import crop_mask
from service.contract.masks import MaskFormat, encode_mask
from service.frames import SegmentedFrame, Stage
from service.pipeline.latest_frames import Drop
from service.pipeline.workers import Worker


class Audience(Protocol):
    """Whoever a stream's masks are for. Called by the publisher's thread; must not block."""

    def formats(self) -> Iterable[MaskFormat]:
        """The formats that somebody wants now."""
        ...

    def deliver(self, segmented: SegmentedFrame, payloads: Mapping[MaskFormat, bytes]) -> None:
        """Hand out a mask, encoded in the formats asked for, and count its frame."""
        ...

    def drop(self, drop: Drop) -> None:
        """Count a frame that will not run; called by the engine's thread."""
        ...


class Publisher:
    """One thread, first in first out, so masks keep the order of their frames.

    The engine may be two batches ahead; then `publish` blocks. `find` gives the audience of a stream, `tell` says to
    all of them that another model made what follows.
    """

    def __init__(
        self,
        find: Callable[[str], Audience],
        tell: Callable[[Bundle], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._find = find
        self._tell = tell
        self._batches: queue.Queue[Sequence[SegmentedFrame] | Bundle | None] = queue.Queue(maxsize=2)
        self._worker = Worker("surgseg-publisher", self._work, on_failure)

    def start(self) -> None:
        self._worker.start()

    def publish(self, batch: Sequence[SegmentedFrame]) -> None:
        """Hand over a batch; called by the engine."""
        self._batches.put(batch)

    def announce(self, bundle: Bundle) -> None:
        """Say that this bundle's model makes every batch handed over from now on, and none before."""
        self._batches.put(bundle)

    def stop(self, timeout_s: float) -> bool:
        """Publish what was handed over, then end; False when that took longer than `timeout_s`."""
        try:
            self._batches.put(None, timeout=timeout_s)
        except queue.Full:
            return False
        return self._worker.join(timeout_s)

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            if isinstance(batch, Bundle):
                self._tell(batch)
                continue
            for segmented in batch:
                self._publish(segmented)

    def _publish(self, segmented: SegmentedFrame) -> None:
        frame = segmented.frame
        audience = self._find(frame.stream_id)
        mask_hw = crop_mask(segmented.canvas_mask_hw, frame.fit)
        used_s = time.thread_time()
        payloads = {
            name: encode_mask(mask_hw, name, segmented.bundle.card.classes) for name in audience.formats()
        }
        frame.timeline.mark(Stage.ENCODE, time.monotonic())
        audience.deliver(replace(segmented, cost_s=time.thread_time() - used_s), payloads)
