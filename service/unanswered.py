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

    def lose(self) -> Loss:
        """The connection is gone and another follows. Kept frames take its first numbers; others are given up."""
        dropped, skipped = self._last
        self._gone.update(dropped)
        self._skipped_before += skipped
        self._last = ({}, 0)
        loss = Loss() if self._keeps_messages else self.give_up()
        self._offset = self.settled
        return loss

    def give_up(self) -> Loss:
        """Nobody will answer what has no answer yet."""
        if self.pushed == self.settled:
            return Loss()
        sequences = (self.settled + 1, self.pushed)
        stamps = (self._waiting[0].captured_at_us, self._waiting[-1].captured_at_us)
        self._waiting.clear()
        loss = Loss(self.pushed - self.settled, sequences, stamps)
        self.settled = self.pushed
        return loss

    def kept_after(self, number: int) -> tuple[Unanswered, ...]:
        """The frames after that one which are to be pushed again, in order."""
        if not self._keeps_messages:
            return ()
        return tuple(frame for frame in self._waiting if frame.number > number)
