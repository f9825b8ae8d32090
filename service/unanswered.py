"""The frames of one pushed stream that have no answer yet, across the connections it has had. Pure: no socket.

A service counts the frames of a connection from 1. The stream's own numbers go on counting when it moves, so that a
frame is known by one number and its `captured_at_us` for as long as the stream lasts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from service.wire import MaskHeader, Mode

_REMEMBERED = 1024  # of a live stream that nobody answers; an older frame is still counted

Header = TypeVar("Header", bound=MaskHeader)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A frame by its number in the stream; `message` is empty where frames are not kept."""

    number: int
    captured_at_us: int
    message: bytes


@dataclass(frozen=True, slots=True)
class Loss:
    """Frames that were pushed and will get no answer: how many, and the first and the last.

    `sequences` and `captured_at_us` are None when there are none. A live frame that the service had dropped just
    before the loss counts here too.
    """

    frames: int = 0
    sequences: tuple[int, int] | None = None
    captured_at_us: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which a stream had no service, and what it cost.

    `lost_at` and `resumed_at` are monotonic seconds. `url` is where the stream went on, empty when it did not.
    `resent` unanswered frames were pushed again and will be answered. `has_other_model`: the masks come from another
    model, or version of it, from here on.
    """

    reason: str
    url: str
    lost_at: float
    resumed_at: float
    loss: Loss
    resent: int = 0
    has_other_model: bool = False

    @property
    def duration_s(self) -> float:
        """From the loss until the stream was open again, or given up."""
        return self.resumed_at - self.lost_at

    def describe(self) -> str:
        """One line for people."""
        numbers = "" if self.loss.sequences is None else " ({} to {})".format(*self.loss.sequences)
        parts = [f"{self.loss.frames} frames without an answer{numbers}", f"{self.resent} pushed again"]
        if self.has_other_model:
            parts.append("another model")
        return f"gap of {self.duration_s:.2f} s: {', '.join(parts)}. {self.reason}"


@dataclass(frozen=True, slots=True)
class Move:
    """A change of replica without a gap: the one that left answered what it had, while the next took what followed.

    `url` is where the stream went on. `began_at`, when the service said that it leaves, and `moved_at`, when its last
    answer had come, are monotonic seconds. `has_other_model` is that of Gap.
    """

    reason: str
    url: str
    began_at: float
    moved_at: float
    has_other_model: bool = False

    def describe(self) -> str:
        """One line for people."""
        model = ", another model" if self.has_other_model else ""
        took_s = self.moved_at - self.began_at
        return f"moved to {self.url} in {took_s:.2f} s: no frame without an answer{model}. {self.reason}"


class UnansweredFrames:
    """Numbers the frames of a stream; its owner holds a lock round every call.

    With `keeps_messages` (mode `every`) frames are kept until they are answered, to be pushed again; the pusher bounds
    how many. Otherwise only their stamps are.
    """

    def __init__(self, mode: Mode, *, keeps_messages: bool) -> None:
        self.pushed = 0
        self.settled = 0  # the last frame, counted from 1, that we know to be answered or refused
        self._keeps_messages = keeps_messages
        self._waiting: deque[Unanswered] = deque(maxlen=None if mode == "every" else _REMEMBERED)
        self._offset = 0
        self._split_at: int | None = None  # the last frame of a connection that is to be followed by another
        self._gone: Counter[str] = Counter()
        self._skipped_before = 0
        self._last: tuple[Mapping[str, int], int] = ({}, 0)

    def push(self, captured_at_us: int, message: bytes) -> None:
        """A frame is about to be sent."""
        self.pushed += 1
        kept = message if self._keeps_messages else b""
        self._waiting.append(Unanswered(self.pushed, captured_at_us, kept))

    def settle(self, sequence: int) -> int:
        """Frame `sequence` of this connection is answered or refused, and none before it will be; its own number."""
        number = self._offset + sequence
        self.settled = max(self.settled, number)
        while self._waiting and self._waiting[0].number <= self.settled:
            self._waiting.popleft()
        return number

    def answer(self, answer: Header) -> Header:
        """The same answer in the stream's own numbers: `sequence`, and the counts since the stream began."""
        self._last = (answer.dropped, answer.skipped)
        number = self.settle(answer.sequence)
        if not self._offset:
            return answer
        return replace(
            answer,
            sequence=number,
            received=self._offset + answer.received,
            dropped=dict(self._gone + Counter(answer.dropped)),
            skipped=self._skipped_before + answer.skipped,
        )

    def account(self, dropped: Mapping[str, int], skipped: int) -> None:
        """The service's last word about this connection: what it dropped after its last answer counts too."""
        self._last = (dropped, skipped)

    def lose(self) -> Loss:
        """The connection is gone and another follows. Kept frames take its first numbers; others are given up."""
        self._close_accounts()
        loss = Loss() if self._keeps_messages else self.give_up()
        self._offset = self.settled
        return loss

    def split(self) -> None:
        """Frames from here on go to another connection, whose answers are read when this one has ended."""
        self._split_at = self.pushed

    @property
    def has_to_repeat(self) -> bool:
        """Whether a frame before the split has no answer and is kept: those after it would come too early."""
        return self._keeps_messages and self._split_at is not None and self.settled < self._split_at

    def follow(self, *, is_whole: bool) -> Loss:
        """This connection has ended and the answers of the other one come now.

        `is_whole`: every frame before the split was answered or dropped by a cause. Otherwise they are given up.
        """
        assert self._split_at is not None
        split_at = self._split_at
        self._close_accounts()
        loss = self._give_up(split_at)
        self._offset = split_at
        return Loss() if is_whole else loss

    def give_up(self) -> Loss:
        """Nobody will answer what has no answer yet."""
        return self._give_up(self.pushed)

    def _give_up(self, last: int) -> Loss:
        if last <= self.settled:
            return Loss()
        first = self.settled + 1
        given_up = [frame.captured_at_us for frame in self._waiting if frame.number <= last]
        while self._waiting and self._waiting[0].number <= last:
            self._waiting.popleft()
        self.settled = last
        # More than are remembered may lie between: then the first stamp is that of the first one remembered.
        stamps = (given_up[0], given_up[-1]) if given_up else None
        return Loss(last - first + 1, (first, last), stamps)

    def _close_accounts(self) -> None:
        dropped, skipped = self._last
        self._gone.update(dropped)
        self._skipped_before += skipped
        self._last = ({}, 0)
        self._split_at = None

    def kept_after(self, number: int) -> tuple[Unanswered, ...]:
        """The frames after that one which are to be pushed again, in order."""
        if not self._keeps_messages:
            return ()
        return tuple(frame for frame in self._waiting if frame.number > number)
