"""One open stream: its source, its reader's thread, its viewers and its accounts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from service.contract.masks import MaskFormat
from service.errors import StreamError, SurgsegError
from service.frames import DropReason, Frame, SegmentedFrame
from service.pipeline.latest_frames import Drop, Mode
from service.pipeline.ledger import Ledger
from service.pipeline.subscription import Answer, Subscription
from service.pipeline.waiting_room import WaitingRoom
from service.pipeline.workers import Worker
from service.streams.pushed import PushedPicture, PushedPictures


class PushedStream:
    """A stream of pictures that one client pushes. Any thread may call any method.

    `on_undecodable(sequence, error)` and `on_room` are called in the reader's thread, `on_failure` in any.
    It keeps its place (and its label) until every frame of it is accounted for, which may be just after
    `close`.
    """

    def __init__(
        self,
        *,
        stream_id: str,
        label: str,
        codec: str,
        mode: Mode,
        max_pixels: int,
        ledger: Ledger,
        room: WaitingRoom,
        on_undecodable: Callable[[int, SurgsegError], None],
        on_room: Callable[[], None],
        on_failure: Callable[[SurgsegError], None],
    ) -> None:
        self.id = stream_id
        self.label = label
        self.codec = codec
        self.mode = mode
        self.ledger = ledger
        self._room = room
        self._on_undecodable = on_undecodable
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._reader: Worker | None = None
        self.source = PushedPictures(
            codec=codec,
            max_pixels=max_pixels,
            is_lossless=mode is Mode.EVERY,
            on_undecodable=self._refuse,
            on_room=on_room,
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
        self._on_failure(error)

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

    def _refuse(self, picture: PushedPicture, error: SurgsegError) -> None:
        self.ledger.drop(DropReason.UNDECODABLE)
        self._on_undecodable(picture.sequence, error)
