"""From a source to the waiting room: fit each picture to the model, mark its timeline, offer it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from service.contract.geometry import FitRule, fit_image, plan_fit
from service.contract.model_card import InputSize
from service.frames import DecodedFrame, FittedFrame, Frame, Stage, Timeline
from service.streams.source import FrameSource


def prepare_frame(
    decoded: DecodedFrame,
    *,
    stream_id: str,
    sequence: int,
    input_size: InputSize,
    fit_rule: FitRule,
    wait_limit_s: float | None,
) -> Frame:
    """Fit a picture just decoded. Its deadline is `wait_limit_s` after its arrival; None means never."""
    decoded_at = time.monotonic()
    arrived_at = decoded_at if decoded.arrived_at is None else decoded.arrived_at
    timeline = Timeline(arrived_at)
    timeline.mark(Stage.DECODE, decoded_at)
    height, width = decoded.image_hwc.shape[:2]
    fit = plan_fit(height, width, input_size, fit_rule)
    canvas_hwc = fit_image(decoded.image_hwc, fit)
    timeline.mark(Stage.PREPARE, time.monotonic())
    return Frame(
        stream_id=stream_id,
        sequence=sequence,
        canvas_hwc=canvas_hwc,
        fit=fit,
        timeline=timeline,
        captured_at_us=decoded.captured_at_us,
        pts_s=decoded.pts_s,
        deadline_at=None if wait_limit_s is None else arrived_at + wait_limit_s,
    )


def take_over(fitted: FittedFrame, *, stream_id: str, sequence: int, wait_limit_s: float | None) -> Frame:
    """A frame that was fitted elsewhere; its deadline as in `prepare_frame`."""
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
        cost_s=fitted.cost_s,
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
        input_size: InputSize,
        fit_rule: FitRule,
        wait_limit_s: float | None,
        number: Callable[[], int],
        offer: Callable[[Frame], None],
        on_broken: Callable[[int], None],
    ) -> None:
        self._source = source
        self._stream_id = stream_id
        self._input_size = input_size
        self._fit_rule = fit_rule
        self._wait_limit_s = wait_limit_s
        self._number = number
        self._offer = offer
        self._on_broken = on_broken

    def run(self) -> None:
        """Offer every frame of the source. Raises what the source raises."""
        used_s = time.thread_time()
        for picture in self._source.frames():
            sequence = self._number() if picture.sequence is None else picture.sequence
            try:
                frame = self._prepare(picture, sequence)
            except BaseException:
                self._on_broken(sequence)
                raise
            spent_s, used_s = time.thread_time() - used_s, time.thread_time()
            self._offer(replace(frame, cost_s=frame.cost_s + spent_s))

    def _prepare(self, picture: DecodedFrame | FittedFrame, sequence: int) -> Frame:
        stream_id, wait_limit_s = self._stream_id, self._wait_limit_s
        if isinstance(picture, FittedFrame):
            return take_over(picture, stream_id=stream_id, sequence=sequence, wait_limit_s=wait_limit_s)
        return prepare_frame(
            picture,
            stream_id=stream_id,
            sequence=sequence,
            input_size=self._input_size,
            fit_rule=self._fit_rule,
            wait_limit_s=wait_limit_s,
        )
