"""Video that the service fetches itself: files, RTSP, and MPEG-TS over UDP, as a source of frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from service.contract.geometry import FitRule
from service.errors import StreamError
from service.frames import DecoderLoss, DropReason
from service.streams.decoded_video import DecodedVideo, DecoderLostError, StreamState
from service.streams.decoder_messages import OPENED, DropMessage, Event, FrameMessage, Job
from service.streams.decoder_process import DecoderPool
from service.streams.decoder_terms import DecoderTerms
from service.streams.pull_targets import PullTarget
from service.streams.restarts import Restarts

_FIRST_RESTART_S, _HEALTHY_S = 0.2, 30.0
_MOST_WAIT_FOR_DATAGRAMS_S = 1.0  # a source that we only listen to is not spared by waiting longer


class PulledVideo(DecodedVideo):
    """An address in, pictures out. A frame is received when its decoder tells of it; the reader numbers it then.

    A live source that is silent for `stall_s`, closes, or cannot be opened is tried again with back-off: until the cap
    when it has never given a picture, for as long as it takes when it has. A file whose decoder is lost goes on behind
    the last picture that it gave, a looped one from its beginning; what a decoder itself finds wrong with a file is
    final.

    `on_received` counts a frame and numbers it, and `on_dropped` says why that one gives no mask.
    """

    def __init__(
        self,
        pool: DecoderPool,
        terms: DecoderTerms,
        target: PullTarget,
        *,
        fit_rule: FitRule,
        is_lossless: bool,
        is_looped: bool,
        on_received: Callable[[], int],
        on_dropped: Callable[[int, DropReason], None],
        on_state: Callable[[StreamState, str], None],
        on_restart: Callable[[DecoderLoss], None],
    ) -> None:
        job = replace(
            terms.plan_job(fit_rule, is_lossless=is_lossless),
            url=target.url,
            options=target.options,
            is_file=target.is_file,
            is_paced=target.is_file and not is_lossless,
            is_looped=is_looped,
        )
        most_s = terms.reconnect_s
        if target.url.startswith("udp:"):
            most_s = min(most_s, _MOST_WAIT_FOR_DATAGRAMS_S)
        restarts = Restarts(terms.restarts, _FIRST_RESTART_S, most_s, _HEALTHY_S)
        super().__init__(pool, job, restarts=restarts, on_state=on_state, on_restart=on_restart)
        self.codec = ""
        self._stall_s = terms.stall_s
        self._on_received = on_received
        self._on_dropped = on_dropped
        self._told = 0  # frames of a file that its decoders have told of

    def _plan_job(self) -> Job:
        is_resumed = self._job.is_file and not self._job.is_looped
        return replace(self._job, skip=self._told) if is_resumed else self._job

    def _identify(self, message: FrameMessage) -> tuple[int | None, int, float] | None:
        self._told += 1
        self._is_patient = not self._job.is_file
        return self._on_received(), 0, message.arrived_at

    def _drop(self, message: DropMessage) -> None:
        for _ in message.sequences:
            self._told += 1
            self._on_dropped(self._on_received(), message.reason)

    def _note(self, event: Event) -> None:
        if event.kind == OPENED:
            self.codec = str(event.fields.get("codec", ""))

    def _fail(self, event: Event) -> None:
        if event.fields.get("is_final"):
            found = str(event.fields.get("found", "its decoder gave no reason"))
            raise StreamError(found, "a video file that FFmpeg can decode to its end", "Check the file.")
        super()._fail(event)

    def _finish(self) -> None:
        if not self._job.is_file:
            raise DecoderLostError("its source has closed the connection", DecoderLoss.SOURCE)

    def _end(self) -> None:
        """Nothing is lost: what the decoder still held was never counted as received."""

    def _watch(self, heard_at: float) -> None:
        silent_s = time.monotonic() - heard_at
        if silent_s <= self._stall_s:
            return
        if self._job.is_file:
            raise DecoderLostError(f"its decoder has not answered for {silent_s:.1f} s", DecoderLoss.HUNG)
        reason = f"its source has sent nothing for {silent_s:.1f} s"
        self._enter(StreamState.STALLED, reason)
        raise DecoderLostError(reason, DecoderLoss.SOURCE)
