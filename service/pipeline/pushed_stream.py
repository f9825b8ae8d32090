"""A stream whose frames a client pushes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.contract.geometry import FitRule
from service.contract.model_card import InputSize
from service.errors import StreamError, SurgsegError
from service.frames import DropReason, SegmentedFrame
from service.pipeline.latest_frames import Mode
from service.pipeline.ledger import Ledger
from service.pipeline.live_stream import LiveStream
from service.pipeline.waiting_room import WaitingRoom
from service.streams.decoded_video import StreamState
from service.streams.decoder_process import DecoderPool
from service.streams.decoder_terms import DecoderTerms
from service.streams.pushed import PushedPicture, PushedPictures
from service.streams.pushed_video import PushedVideo

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushCallbacks:
    """What the owner of a pushed stream is told. Every one may be called in any thread.

    `on_lost(sequence, error)`: a frame gave no mask for a reason that its sender should know; `on_room`: a lossless
    stream, which may push `LOSSLESS_PUSHES` times at first, may push once more; `on_failure`: the stream cannot go on;
    `on_state(state, reason)`.
    """

    on_lost: Callable[[int, SurgsegError], None]
    on_room: Callable[[], None]
    on_failure: Callable[[SurgsegError], None]
    on_state: Callable[[StreamState, str], None]


class PushedStream(LiveStream):
    """A stream of frames that one client pushes. Any thread may call any method.

    One of `attach_pictures` and `attach_video` comes first, then `start`.
    """

    source: PushedPictures | PushedVideo

    def __init__(
        self,
        *,
        stream_id: str,
        label: str,
        codec: str,
        mode: Mode,
        ledger: Ledger,
        room: WaitingRoom,
        on_served: Callable[[SegmentedFrame], None],
        callbacks: PushCallbacks,
    ) -> None:
        super().__init__(
            stream_id=stream_id, label=label, mode=mode, ledger=ledger, room=room, on_served=on_served
        )
        self._codec = codec
        self._callbacks = callbacks

    @property
    def origin(self) -> str:
        return "pushed"

    @property
    def codec(self) -> str:
        return self._codec

    @property
    def state(self) -> tuple[str, str]:
        if isinstance(self.source, PushedVideo):
            return self.source.state.value, self.source.reason
        return StreamState.RUNNING.value, ""

    def attach_pictures(self, input_size: InputSize, fit_rule: FitRule, max_pixels: int) -> None:
        """Take in pictures that need nothing but themselves to be decoded."""
        self.source = PushedPictures(
            codec=self.codec,
            input_size=input_size,
            fit_rule=fit_rule,
            max_pixels=max_pixels,
            is_lossless=self.mode is Mode.EVERY,
            on_undecodable=lambda picture, error: self.lose(picture.sequence, DropReason.UNDECODABLE, error),
            on_room=self._callbacks.on_room,
        )

    def attach_video(self, pool: DecoderPool, terms: DecoderTerms, fit_rule: FitRule) -> None:
        """Take in access units, for a decoder process of `pool`."""
        self.source = PushedVideo(
            pool,
            terms,
            codec=self.codec,
            fit_rule=fit_rule,
            is_lossless=self.mode is Mode.EVERY,
            on_lost=self.lose,
            on_room=self._callbacks.on_room,
            on_state=self._tell_state,
            on_restart=self.ledger.restart,
        )

    def _tell_state(self, state: StreamState, reason: str) -> None:
        level = logging.INFO if state is StreamState.RUNNING else logging.WARNING
        _log.log(level, "%s (pushed) is %s. %s", self.id, state.value, reason)
        self._callbacks.on_state(state, reason)

    def push(self, data: bytes, captured_at_us: int) -> int:
        """Take in one encoded picture that has arrived now; gives its sequence number. Never blocks.

        Raises BufferError when the stream is lossless and has no room, as `on_room` says.
        """
        sequence = self.ledger.receive()
        picture = PushedPicture(sequence, captured_at_us, time.monotonic(), data)
        unwanted = self.source.push(picture)
        if unwanted is not None:
            is_newest = unwanted.sequence == sequence
            self.ledger.drop(unwanted.sequence, DropReason.CLOSED if is_newest else DropReason.SUPERSEDED)
        return sequence

    def finish(self) -> None:
        """No frame follows; what the source holds back comes out, so that every frame is accounted for."""
        if isinstance(self.source, PushedVideo):
            self.source.finish()

    def fail(self, error: BaseException) -> None:
        """See `LiveStream.fail`; the owner is told, and closes it."""
        self._callbacks.on_failure(self._explain(error))

    def close(self) -> None:
        """See `LiveStream.close`."""
        self._close_mailboxes()
        self.source.close()
        for drop in self._room.remove_stream(self.id):
            self.drop(drop)
        for unread in self.source.unread():
            self.ledger.drop(unread.sequence, DropReason.CLOSED)
        self.ledger.close()

    def lose(self, sequence: int, reason: DropReason, error: SurgsegError | None) -> None:
        """Count a frame that gave no picture; its sender is told where it is to blame, or where none may be lost."""
        if error is None and self.mode is Mode.EVERY:
            error = StreamError(
                f"Frame {sequence} is lost ({reason.value}).", "a picture", "Send it again if it matters."
            )
        if error is not None:
            self._callbacks.on_lost(sequence, error)
        # last: while a frame is pending the stream is not taken for settled
        self.ledger.drop(sequence, reason)
