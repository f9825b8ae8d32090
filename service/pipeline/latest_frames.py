"""Which frames run next. Pure: no thread, clock, queue or socket; the waiting room wraps it for threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from enum import StrEnum

from service.frames import DropReason, Frame


class Mode(StrEnum):
    """What happens to a frame that finds another of its stream waiting."""

    LATEST = "latest"
    """The newer one wins; the older is dropped as superseded."""
    EVERY = "every"
    """All are kept, in order; who offers must first wait for room."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A frame that will never give a mask, and why."""

    frame: Frame
    reason: DropReason


@dataclass(frozen=True, slots=True)
class Taken:
    """What the engine is to run now, and what it need not run any more."""

    frames: tuple[Frame, ...] = ()
    drops: tuple[Drop, ...] = ()


@dataclass(slots=True)
class _Lane:
    mode: Mode
    capacity: int
    priority: int
    waiting: deque[Frame] = field(default_factory=deque)
    under_way: int = 0
    """Frames taken and not yet finished; counted for EVERY only."""
    passed_over: int = 0
    """Takes, since its last frame was taken, in which a stream that came later went first."""

    @property
    def rank(self) -> int:
        return self.priority + self.passed_over


class LatestFrames:
    """The waiting frames of every stream.

    - At most one frame per stream per `take`, so a stream's masks come out in the order its frames went in.
    - The stream of the highest rank goes first, among equals the one that has waited longest. A newer frame
      takes the place of the one it supersedes, so a fast stream does not lose its turn and a slow one is not
      overtaken.
    - Its rank is its priority, and one more for each take that let a later one overtake it since its last frame
      was taken. So no stream starves: it waits at most (highest priority - its own) + 2 x streams takes.
    - LATEST: at most one frame waits. EVERY: `capacity` frames may be waiting or under way, until `finish`;
      `offer` refuses more, and that refusal is what holds the sender back.
    - A frame that cannot meet its deadline any more is dropped when its turn comes. Frames of a lossless stream
      carry no deadline.

    Every frame offered is waiting, or comes out exactly once: taken, or in a Drop.
    """

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._turns: dict[str, None] = {}  # streams with a waiting frame, the longest-waiting first

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._lanes

    def __len__(self) -> int:
        """Frames waiting, over all streams."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def add_stream(self, stream_id: str, mode: Mode, capacity: int = 1, priority: int = 0) -> None:
        """Open a lane. A stream whose `priority` is higher by d overtakes a waiting one at most d times in a row.

        Raises ValueError when it is open already or the capacity is below 1.
        """
        if stream_id in self._lanes or capacity < 1:
            raise ValueError(f"stream {stream_id!r} is open, or its capacity {capacity} is below 1")
        self._lanes[stream_id] = _Lane(mode, capacity, priority)

    def remove_stream(self, stream_id: str) -> tuple[Drop, ...]:
        """Close a lane; its waiting frames are dropped as closed. An unknown stream has none."""
        self._turns.pop(stream_id, None)
        lane = self._lanes.pop(stream_id, None)
        return tuple(Drop(frame, DropReason.CLOSED) for frame in lane.waiting) if lane else ()

    def has_room(self, stream_id: str) -> bool:
        """Whether `offer` takes a frame of this stream now; a closed stream does, and drops it."""
        lane = self._lanes.get(stream_id)
        if lane is None or lane.mode is Mode.LATEST:
            return True
        return len(lane.waiting) + lane.under_way < lane.capacity

    def offer(self, frame: Frame) -> Drop | None:
        """Let a frame wait for its turn; gives the drop that this caused, if any.

        Raises BufferError when a lossless stream has no room.
        """
        lane = self._lanes.get(frame.stream_id)
        if lane is None:
            return Drop(frame, DropReason.CLOSED)
        if not self.has_room(frame.stream_id):
            raise BufferError(f"stream {frame.stream_id!r} has {lane.capacity} frames waiting or under way")
        superseded = lane.waiting.popleft() if lane.mode is Mode.LATEST and lane.waiting else None
        lane.waiting.append(frame)
        self._turns.setdefault(frame.stream_id)
        return Drop(superseded, DropReason.SUPERSEDED) if superseded else None

    def take(
        self,
        now: float,
        limit: int,
        ahead_s: Callable[[str], float] = lambda stream_id: 0.0,
        running: Container[str] = frozenset(),
    ) -> Taken:
        """At most `limit` frames to run at the instant `now`, and the frames that would be sent too late.

        `ahead_s` gives the time that a frame of a stream still needs before it is sent. The live streams of `running`
        wait: their last frame is not done, and by then a newer one may have come.
        """
        frames: list[Frame] = []
        drops: list[Drop] = []
        line = [each for each in self._turns if each not in running or self._lanes[each].mode is Mode.EVERY]
        for stream_id in sorted(line, key=lambda stream_id: -self._lanes[stream_id].rank):
            if len(frames) == limit:
                break
            frame = self._take_turn(stream_id, now + ahead_s(stream_id), drops)
            if frame is not None:
                frames.append(frame)
        self._raise_passed_over(line, {frame.stream_id for frame in frames})
        return Taken(tuple(frames), tuple(drops))

    def finish(self, stream_id: str) -> None:
        """A taken frame's mask has been handed over: a lossless stream has room for one more."""
        lane = self._lanes.get(stream_id)
        if lane is not None and lane.under_way:
            lane.under_way -= 1

    def _take_turn(self, stream_id: str, sent_at: float, drops: list[Drop]) -> Frame | None:
        lane = self._lanes[stream_id]
        del self._turns[stream_id]
        while lane.waiting:
            frame = lane.waiting.popleft()
            if frame.deadline_at is not None and sent_at > frame.deadline_at:
                drops.append(Drop(frame, DropReason.DEADLINE))
                continue
            lane.passed_over = 0
            if lane.mode is Mode.EVERY:
                lane.under_way += 1
            if lane.waiting:
                self._turns[stream_id] = None
            return frame
        return None

    def _raise_passed_over(self, line: list[str], taken: set[str]) -> None:
        """A stream keeps its rise when its frame expires, or a short deadline would keep it from ever going."""
        is_overtaken = False
        for stream_id in reversed(line):
            if stream_id in taken:
                is_overtaken = True
            elif is_overtaken and stream_id in self._turns:
                self._lanes[stream_id].passed_over += 1
