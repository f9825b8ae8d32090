"""LatestFrames made safe for threads: readers offer, the engine takes, either may have to wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from service.frames import Frame, Stage
from service.pipeline.costs import CostEstimate
from service.pipeline.latest_frames import Drop, LatestFrames, Mode, Taken


class WaitingRoom:
    """Where frames wait for the engine. Every method may be called from any thread.

    `clock` gives monotonic seconds. Drops are returned to whoever caused them and must be counted there.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._frames = LatestFrames()
        self._costs = CostEstimate()
        self._lock = threading.Lock()
        self._has_frames = threading.Condition(self._lock)
        self._has_room = threading.Condition(self._lock)
        self._is_turn = threading.Condition(self._lock)
        self._running: dict[str, deque[Frame]] = {}  # what each stream gave that is not done, in order
        self._is_closed = False

    def add_stream(self, stream_id: str, mode: Mode, capacity: int = 1, priority: int = 0) -> None:
        """See `LatestFrames.add_stream`."""
        with self._lock:
            self._frames.add_stream(stream_id, mode, capacity, priority)

    def remove_stream(self, stream_id: str) -> tuple[Drop, ...]:
        """See `LatestFrames.remove_stream`; a reader that waits for room in this stream goes on at once."""
        with self._lock:
            drops = self._frames.remove_stream(stream_id)
            self._costs.forget(stream_id)
            self._has_room.notify_all()
        return drops

    def offer(self, frame: Frame) -> Drop | None:
        """Hand a frame over, first waiting for room if its stream is lossless; gives the drop it caused."""
        with self._lock:
            while not self._frames.has_room(frame.stream_id):
                self._has_room.wait()
            drop = self._frames.offer(frame)
            self._has_frames.notify()
        return drop

    def measure(self, stage: Stage, seconds: float, stream_id: str) -> None:
        """Say how long a stage of a stream's frame took, so that `take` can tell which would be sent too late."""
        with self._lock:
            if stream_id in self._frames:
                self._costs.add(stage, seconds, self._clock(), stream_id)

    def take(
        self, limit: int, timeout_s: float, has_left: Callable[[], bool] = lambda: False
    ) -> Taken | None:
        """The frames to run next; an empty Taken when `timeout_s` ran out; None once the room is closed.

        None as well when `has_left` says that whoever asks is to take no more; `wake` has it asked again.
        A live stream gives no further frame until `done`: by then a newer one may have come. A lossless one does, so
        that it can use every engine, and `wait_turn` keeps it in order.
        """
        ends_at = self._clock() + timeout_s
        with self._lock:
            while not self._is_closed and not has_left():
                now = self._clock()
                ahead_s = partial(self._costs.estimate_ahead, now)
                taken = self._frames.take(now, limit, ahead_s, self._running)
                for frame in taken.frames:
                    self._running.setdefault(frame.stream_id, deque()).append(frame)
                if taken.frames or taken.drops or now >= ends_at:
                    if taken.drops:
                        self._has_room.notify_all()
                    return taken
                self._has_frames.wait(ends_at - now)
        return None

    def wait_turn(self, taken: Taken) -> None:
        """Wait until what these streams gave before is done; whoever has the oldest of all never waits."""
        with self._lock:
            self._is_turn.wait_for(
                lambda: all(self._running[frame.stream_id][0] is frame for frame in taken.frames)
            )

    def done(self, taken: Taken) -> None:
        """The frames taken have been run and handed on, in turn."""
        with self._lock:
            for frame in taken.frames:
                running = self._running[frame.stream_id]
                running.popleft()
                if not running:
                    del self._running[frame.stream_id]
            self._has_frames.notify_all()
            self._is_turn.notify_all()

    def wake(self) -> None:
        """Have everybody who waits in `take` look again."""
        with self._lock:
            self._has_frames.notify_all()

    def finish(self, stream_id: str) -> None:
        """See `LatestFrames.finish`."""
        with self._lock:
            self._frames.finish(stream_id)
            self._has_room.notify_all()

    def close(self) -> None:
        """Send the engine home: `take` gives None from now on. Close the streams first."""
        with self._lock:
            self._is_closed = True
            self._has_frames.notify_all()
