"""A stream whose frames the service fetches itself, for any number of viewers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from service.contract.geometry import FitRule
from service.contract.masks import MaskFormat
from service.errors import SurgsegError, UnavailableError
from service.frames import Frame, SegmentedFrame
from service.pipeline.latest_frames import Mode
from service.pipeline.ledger import Ledger
from service.pipeline.live_stream import LiveStream
from service.pipeline.subscription import Subscription
from service.pipeline.waiting_room import WaitingRoom
from service.streams.decoded_video import StreamState
from service.streams.decoder_process import DecoderPool
from service.streams.decoder_terms import DecoderTerms
from service.streams.pull_targets import PullTarget
from service.streams.pulled_video import PulledVideo

_log = logging.getLogger(__name__)
_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class ViewerCallbacks:
    """What a viewer is told, in any thread; it must not block.

    `on_answer`: a mask lies in its mailbox; `on_state(state, reason)`; `on_end(error)`: no frame comes any more,
    with the error that ended the stream, or None where its end was meant.
    """

    on_answer: Callable[[], None]
    on_state: Callable[[StreamState, str], None]
    on_end: Callable[[SurgsegError | None], None]


class PulledStream(LiveStream):
    """A stream from an address. Any thread may call any method; `attach` comes first, then `start`.

    Live streams run with and without viewers, so that a viewer who comes has a mask at once and the accounts tell how
    the source is. A lossless stream (a file) would then be over before anybody looked: it waits for its first viewer,
    stands still while it has none, and goes no faster than the slowest of them. Whoever does not read is cut, by its
    session. A stream that has ended or failed stays listed until it is closed.
    """

    source: PulledVideo

    def __init__(
        self,
        *,
        stream_id: str,
        label: str,
        name: str,
        mode: Mode,
        target: PullTarget,
        max_viewers: int,
        ledger: Ledger,
        room: WaitingRoom,
        on_served: Callable[[SegmentedFrame], None],
    ) -> None:
        super().__init__(
            stream_id=stream_id, label=label, mode=mode, ledger=ledger, room=room, on_served=on_served
        )
        self.name = name
        self._target = target
        self._max_viewers = max_viewers
        self._callbacks: dict[Subscription, ViewerCallbacks] = {}
        self._changed = threading.Condition(self._lock)
        self._over: tuple[StreamState, str] | None = None
        self._error: SurgsegError | None = None
        self._is_closed = False
        self._is_draining = False

    @property
    def origin(self) -> str:
        return self._target.shown

    @property
    def codec(self) -> str:
        return self.source.codec

    @property
    def state(self) -> tuple[str, str]:
        state, reason = self._over or (self.source.state, self.source.reason)
        return state.value, reason

    @property
    def is_over(self) -> bool:
        """See `LiveStream.is_over`."""
        return self._over is not None

    def attach(self, pool: DecoderPool, terms: DecoderTerms, fit_rule: FitRule, *, is_looped: bool) -> None:
        """Take frames from the target, by a decoder process of `pool`."""
        self.source = PulledVideo(
            pool,
            terms,
            self._target,
            fit_rule=fit_rule,
            is_lossless=self.mode is Mode.EVERY,
            is_looped=is_looped,
            on_received=self.ledger.receive,
            on_dropped=self.ledger.drop,
            on_state=self._tell_state,
            on_restart=self.ledger.restart,
        )

    def start(self, read: Callable[[], None]) -> None:
        """See `LiveStream.start`."""

        def read_to_the_end() -> None:
            read()
            self._end(StreamState.ENDED, "", None)

        super().start(read_to_the_end)

    def watch(self, mask_format: MaskFormat, callbacks: ViewerCallbacks) -> Subscription:
        """Let a viewer in; `unsubscribe` when it leaves. Raises UnavailableError when there are too many."""
        with self._lock:
            if len(self._callbacks) >= self._max_viewers:
                raise UnavailableError(
                    f"Stream {self.id} has {len(self._callbacks)} viewers.",
                    f"at most {self._max_viewers} at once",
                    "Close one, or raise SURGSEG_MAX_VIEWERS.",
                )
            subscription = self._add_mailbox(mask_format, self.mode, callbacks.on_answer)
            self._callbacks[subscription] = callbacks
            is_over, error = self._over is not None or self._is_closed, self._error
            self._changed.notify_all()
        if is_over:
            callbacks.on_end(error)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """See `LiveStream.unsubscribe`."""
        super().unsubscribe(subscription)
        with self._lock:
            self._callbacks.pop(subscription, None)
        self._settle_drain()

    def offer(self, frame: Frame) -> None:
        """See `LiveStream.offer`; a lossless stream waits for a viewer first."""
        if self.mode is Mode.EVERY:
            with self._changed:
                self._changed.wait_for(lambda: self._subscriptions or self._is_closed or self._is_draining)
        super().offer(frame)

    def fail(self, error: BaseException) -> None:
        """See `LiveStream.fail`; the viewers are told, and the stream stays listed with its reason."""
        explained = self._explain(error)
        self._end(StreamState.FAILED, explained.found, explained)

    def drain(self) -> None:
        """Fetch no more; the stream closes when its frames are answered and its viewers have left. Never blocks."""
        with self._changed:
            self._is_draining = True
            self._changed.notify_all()
        self.source.close()
        self._settle_drain()

    def close(self) -> None:
        """See `LiveStream.close`; waits until the reader and the decoder are gone."""
        with self._changed:
            self._is_closed = True
            callbacks = tuple(self._callbacks.values())
            self._callbacks.clear()
            self._changed.notify_all()
        for one in callbacks:
            one.on_end(None)
        self._close_mailboxes()
        self.source.close()
        for drop in self._room.remove_stream(self.id):
            self.drop(drop)
        self.join(_JOIN_S)
        self.ledger.close()

    def _end(self, state: StreamState, reason: str, error: SurgsegError | None) -> None:
        """No frame comes any more; not told when we have ended it ourselves."""
        with self._lock:
            if self._over is not None:
                return
            self._over, self._error = (state, reason), error
            is_told = not self._is_closed and not self._is_draining
            callbacks = tuple(self._callbacks.values()) if is_told else ()
        if is_told:
            _log.log(
                logging.WARNING if error else logging.INFO,
                "%s (%s) has %s. %s", self.id, self.origin, state.value, reason, extra={"stream": self.id},
            )  # fmt: skip
        for one in callbacks:
            one.on_end(error)
        self._settle_drain()

    def _settle_drain(self) -> None:
        with self._lock:
            is_settled = self._is_draining and self._over is not None and not self._subscriptions
        if is_settled:
            self.ledger.close()

    def _tell_state(self, state: StreamState, reason: str) -> None:
        level = logging.INFO if state is StreamState.RUNNING else logging.WARNING
        _log.log(
            *(level, "%s (%s) is %s. %s", self.id, self.origin, state.value, reason),
            extra={"stream": self.id},
        )
        with self._lock:
            callbacks = tuple(self._callbacks.values())
        for one in callbacks:
            one.on_state(state, reason)
