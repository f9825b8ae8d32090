"""From a source to the waiting room: number each frame, mark its timeline, offer it."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.frames import FittedFrame, Frame, Stage, Timeline
from service.streams.source import FrameSource


def take_over(
    fitted: FittedFrame,
    *,
    stream_id: str,
    sequence: int,
    wait_limit_s: float | None,
    cost_s: float = 0.0,
) -> Frame:
    """A frame as the pipeline takes it. Its deadline is `wait_limit_s` after its arrival; None means never.

    `cost_s` is the processor time that it took in this process.
    """
    timeline = Timeline(fitted.arrived_at)
    timeline.mark(Stage.DECODE, fitted.decoded_at)
    timeline.mark(Stage.PREPARE, fitted.prepared_at)
    return Frame(
        stream_id=stream_id,
        sequence=sequence,
        canvas_hwc=fitted.canvas_hwc,
        fit=fitted.fit,
        timeline=timeline,
        captured_at_us=fitted.captured_at_us,
        pts_s=fitted.pts_s,
        deadline_at=None if wait_limit_s is None else fitted.arrived_at + wait_limit_s,
        cost_s=fitted.cost_s + cost_s,
    )


class Reader:
    """Reads one source to its end, in a thread of its own (`run`).

    `number` gives a frame its sequence number where the source has none. `offer` may block, for a lossless
    stream. `on_broken` is told the sequence number of a frame that an unexpected error took away.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        stream_id: str,
        wait_limit_s: float | None,
        number: Callable[[], int],
        offer: Callable[[Frame], None],
        on_broken: Callable[[int], None],
    ) -> None:
        self._source = source
        self._stream_id = stream_id
        self._wait_limit_s = wait_limit_s
        self._number = number
        self._offer = offer
        self._on_broken = on_broken

    def run(self) -> None:
        """Offer every frame of the source. Raises what the source raises."""
        used_s = time.thread_time()
        for fitted in self._source.frames():
            sequence = self._number() if fitted.sequence is None else fitted.sequence
            spent_s, used_s = time.thread_time() - used_s, time.thread_time()
            try:
                frame = take_over(
                    fitted,
                    stream_id=self._stream_id,
                    sequence=sequence,
                    wait_limit_s=self._wait_limit_s,
                    cost_s=spent_s,
                )
            except BaseException:
                self._on_broken(sequence)
                raise
            self._offer(frame)
