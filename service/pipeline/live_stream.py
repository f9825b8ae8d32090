"""What every open stream has: an id and a place, a reader's thread, viewers, and its accounts."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

from service.contract.bundle import Bundle
from service.contract.masks import MaskFormat
from service.errors import StreamError, SurgsegError
from service.frames import DropReason, Frame, SegmentedFrame
from service.gauges import StreamSight
from service.pipeline.admission import PROMISE_S
from service.pipeline.latest_frames import Drop, Mode
from service.pipeline.ledger import Ledger
from service.pipeline.subscription import Answer, Subscription
from service.pipeline.waiting_room import WaitingRoom
from service.pipeline.workers import Worker
from service.streams.source import FrameSource


class LiveStream(ABC):
    """One open stream. Any thread may call any method.

    It keeps its place (and its label) until it is closed and every frame of it is accounted for. Subclasses know
    where the frames come from; they have a `source` before `start`. `on_served` is told of every mask that is encoded.
    """

    source: FrameSource
    bundle: Bundle
    """The one whose masks are handed out now; set before the first viewer comes."""

    def __init__(
        self,
        *,
        stream_id: str,
        label: str,
        mode: Mode,
        ledger: Ledger,
        room: WaitingRoom,
        on_served: Callable[[SegmentedFrame], None],
    ) -> None:
        self.id = stream_id
        self.label = label
        self.mode = mode
        self.ledger = ledger
        self.name = ""
        self.picture_size: tuple[int, int] | None = None
        """Width and height of the last picture at its source, in pixels."""
        self._room = room
        self._on_served = on_served
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._reader: Worker | None = None

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where its frames come from, for people: an address without its secrets, or `pushed`."""

    @property
    @abstractmethod
    def codec(self) -> str:
        """How its frames are encoded; empty while that is not known."""

    @property
    @abstractmethod
    def state(self) -> tuple[str, str]:
        """What the stream is doing, and why where there is a reason."""

    @property
    def viewers(self) -> int:
        """How many get its masks now."""
        return len(self._subscriptions)

    @property
    def is_over(self) -> bool:
        """Whether it has ended or failed, and gives no mask any more."""
        return False

    def look(self) -> StreamSight:
        """What the metrics say of it. Masks are owed, and in time, by live streams: the others go as viewers read."""
        is_due = self.mode is Mode.LATEST and not self.is_over
        return StreamSight(
            label=self.label,
            state=self.state[0],
            viewers=self.viewers,
            mask_age_s=self.ledger.mask_age_s if is_due else None,
            promise_s=PROMISE_S if is_due else None,
        )

    def start(self, read: Callable[[], None]) -> None:
        """Run `read`, the reader of this stream's source, in a thread that ends with the stream."""
        self._reader = Worker(f"surgseg-reader-{self.id}", read, self.fail)
        self._reader.start()

    def subscribe(self, mask_format: MaskFormat, mode: Mode, notify: Callable[[], None]) -> Subscription:
        """Open a mailbox for a viewer; `notify` is called, in the publisher's thread, for every answer."""
        with self._lock:
            return self._add_mailbox(mask_format, mode, notify)

    def announce(self, bundle: Bundle) -> None:
        """The masks handed out from now on are of this bundle's model; every viewer is told in between."""
        with self._lock:
            self.bundle = bundle
            for subscription in self._subscriptions:
                subscription.announce(bundle)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Close a viewer's mailbox; what it has not taken holds nobody back any more. Again does nothing."""
        with self._lock:
            self._subscriptions = tuple(one for one in self._subscriptions if one is not subscription)
        subscription.close()

    def formats(self) -> Iterable[MaskFormat]:
        """See `Audience.formats`."""
        return {subscription.mask_format for subscription in self._subscriptions}

    def deliver(self, segmented: SegmentedFrame, payloads: Mapping[MaskFormat, bytes]) -> None:
        """See `Audience.deliver`."""
        self.ledger.segment(segmented)
        self._on_served(segmented)
        with self._lock:
            receivers = [one for one in self._subscriptions if one.mask_format in payloads]
        holders = sum(one.mode is Mode.EVERY for one in receivers)
        hold = _Hold(holders, lambda: self._room.finish(self.id))
        for subscription in receivers:
            subscription.put(Answer(segmented, payloads[subscription.mask_format]), hold.let_go)

    def offer(self, frame: Frame) -> None:
        """Put a prepared frame into the waiting room; called by the reader, blocks when lossless."""
        self.picture_size = frame.fit.source_width, frame.fit.source_height
        if drop := self._room.offer(frame):
            self.drop(drop)

    def drop(self, drop: Drop) -> None:
        """Count a frame of this stream that will not run."""
        self.ledger.drop(drop.frame.sequence, drop.reason, drop.frame.pts_s)

    def drop_broken(self, sequence: int) -> None:
        """Count a frame that an unexpected error in the reader took away."""
        self.ledger.drop(sequence, DropReason.UNDECODABLE)

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """The stream cannot go on; whoever is concerned is told."""

    @abstractmethod
    def close(self) -> None:
        """End the stream; frames that wait are dropped as closed, frames at the engine end unseen."""

    def join(self, timeout_s: float) -> bool:
        """Wait for the reader's thread to end, after `close`."""
        return self._reader is None or self._reader.join(timeout_s)

    def _add_mailbox(self, mask_format: MaskFormat, mode: Mode, notify: Callable[[], None]) -> Subscription:
        """The lock is held, so that the mailbox either hears of a change of the model or begins after it."""
        subscription = Subscription(
            mask_format, mode, self.bundle, notify=notify, on_skipped=self.ledger.skip
        )
        self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def _close_mailboxes(self) -> None:
        with self._lock:
            subscriptions, self._subscriptions = self._subscriptions, ()
        for subscription in subscriptions:
            subscription.close()

    def _explain(self, error: BaseException) -> SurgsegError:
        if isinstance(error, SurgsegError):
            return error
        found = f"Stream {self.id} failed: {error.__class__.__name__}: {error}."
        return StreamError(found, "a picture", "Report this with the service's log.")


class _Hold:
    """A frame's place in the waiting room, given back when the last of `count` viewers lets go of its mask."""

    def __init__(self, count: int, give_back: Callable[[], None]) -> None:
        self._count = count
        self._give_back = give_back
        self._lock = threading.Lock()
        if not count:
            give_back()

    def let_go(self) -> None:
        """One viewer has taken its mask, or never will."""
        with self._lock:
            self._count -= 1
            is_last = self._count == 0
        if is_last:
            self._give_back()
