"""One open stream: its source, its reader's thread, its viewers and its accounts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from service.contract.geometry import FitRule
from service.contract.masks import MaskFormat
from service.errors import StreamError, SurgsegError
from service.frames import DropReason, Frame, SegmentedFrame
from service.pipeline.latest_frames import Drop, Mode
from service.pipeline.ledger import Ledger
from service.pipeline.subscription import Answer, Subscription
from service.pipeline.waiting_room import WaitingRoom
from service.pipeline.workers import Worker
from service.streams.decoded_video import DecoderTerms, StreamState
from service.streams.decoder_process import DecoderPool
from service.streams.pushed import PushedPicture, PushedPictures
from service.streams.pushed_video import PushedVideo


@dataclass(frozen=True, slots=True)
class PushCallbacks:
    """What the owner of a pushed stream is told. Every one may be called in any thread.

    `on_lost(sequence, error)`: a frame gave no mask for a reason that its sender should know; `on_room`: a lossless
    stream may push again, once for each push; `on_failure`: the stream cannot go on; `on_state(state, reason)`.
    """

    on_lost: Callable[[int, SurgsegError], None]
    on_room: Callable[[], None]
    on_failure: Callable[[SurgsegError], None]
    on_state: Callable[[StreamState, str], None]


class PushedStream:
    """A stream of frames that one client pushes. Any thread may call any method.

    One of `attach_pictures` and `attach_video` comes first, then `start`. It keeps its place (and its label) until
    every frame of it is accounted for, which may be just after `close`.
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
        callbacks: PushCallbacks,
    ) -> None:
        self.id = stream_id
        self.label = label
        self.codec = codec
        self.mode = mode
        self.ledger = ledger
        self._room = room
        self._callbacks = callbacks
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._reader: Worker | None = None

    @property
    def state(self) -> tuple[str, str]:
        """What the stream is doing, and why where there is a reason."""
        if isinstance(self.source, PushedVideo):
            return self.source.state.value, self.source.reason
        return StreamState.RUNNING.value, ""

    def attach_pictures(self, max_pixels: int) -> None:
        """Take in pictures that need nothing but themselves to be decoded."""
        self.source = PushedPictures(
            codec=self.codec,
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
            on_state=self._callbacks.on_state,
        )

    def start(self, read: Callable[[], None]) -> None:
        """Run `read`, the reader of this stream's source, in a thread that ends with the stream."""
        self._reader = Worker(f"surgseg-reader-{self.id}", read, self.fail)
        self._reader.start()

    def push(self, data: bytes, captured_at_us: int) -> int:
        """Take in one encoded picture that has arrived now; gives its sequence number. Never blocks.

        Raises BufferError when the stream is lossless and `on_room` has not been called since the last push.
        """
        sequence = self.ledger.receive()
        picture = PushedPicture(sequence, captured_at_us, time.monotonic(), data)
        unwanted = self.source.push(picture)
        if unwanted is not None:
            is_newest = unwanted.sequence == sequence
            self.ledger.drop(DropReason.CLOSED if is_newest else DropReason.SUPERSEDED)
        return sequence

    def subscribe(self, mask_format: MaskFormat, mode: Mode, notify: Callable[[], None]) -> Subscription:
        """Open a mailbox for a viewer; `notify` is called, in the publisher's thread, for every answer."""
        subscription = Subscription(
            mask_format,
            mode,
            notify=notify,
            on_skipped=self.ledger.skip,
            on_taken=lambda: self._room.finish(self.id),
        )
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def formats(self) -> Iterable[MaskFormat]:
        """See `Audience.formats`."""
        return {subscription.mask_format for subscription in self._subscriptions}

    def deliver(self, segmented: SegmentedFrame, payloads: Mapping[MaskFormat, bytes]) -> None:
        """See `Audience.deliver`."""
        self.ledger.segment(segmented.frame.timeline)
        with self._lock:
            subscriptions = self._subscriptions
        is_held = False
        for subscription in subscriptions:
            if subscription.mask_format in payloads:
                is_held = is_held or subscription.mode is Mode.EVERY
                subscription.put(Answer(segmented, payloads[subscription.mask_format]))
        if not is_held:
            self._room.finish(self.id)

    def offer(self, frame: Frame) -> None:
        """Put a prepared frame into the waiting room; called by the reader, blocks when lossless."""
        if drop := self._room.offer(frame):
            self.drop(drop)

    def drop(self, drop: Drop) -> None:
        """Count a frame of this stream that will not run."""
        self.ledger.drop(drop.reason)

    def drop_broken(self, sequence: int) -> None:
        """Count a frame that an unexpected error in the reader took away."""
        self.ledger.drop(DropReason.UNDECODABLE)

    def fail(self, error: BaseException) -> None:
        """Tell the stream's owner that it cannot go on; the owner closes it."""
        if not isinstance(error, SurgsegError):
            found = f"Stream {self.id} failed: {error.__class__.__name__}: {error}."
            error = StreamError(found, "a picture", "Report this with the service's log.")
        self._callbacks.on_failure(error)

    def close(self) -> None:
        """End the stream; frames that wait are dropped as closed, frames at the engine end unseen."""
        with self._lock:
            self._subscriptions = ()
        self.source.close()
        for drop in self._room.remove_stream(self.id):
            self.drop(drop)
        for _ in self.source.unread():
            self.ledger.drop(DropReason.CLOSED)
        self.ledger.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the reader's thread to end, after `close`."""
        return self._reader is None or self._reader.join(timeout_s)

    def lose(self, sequence: int, reason: DropReason, error: SurgsegError | None) -> None:
        """Count a frame that gave no picture; its sender is told where it is to blame, or where none may be lost."""
        self.ledger.drop(reason)
        if error is None and self.mode is Mode.EVERY:
            error = StreamError(
                f"Frame {sequence} is lost ({reason.value}).", "a picture", "Send it again if it matters."
            )
        if error is not None:
            self._callbacks.on_lost(sequence, error)
