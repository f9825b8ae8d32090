"""Whether one more stream can be served without breaking the promise to the others. Pure: no clock, no thread."""

from __future__ import annotations

from dataclasses import dataclass

from service.pipeline.processor_costs import Newcomer, ProcessorCosts
from service.pipeline.stream_load import PROBATION_S, WINDOW_S, StreamLoad

PROMISE_S = 0.050
SHARE = 0.8
# Measured loads waver: what is let in at the limit must not be thrown out for a few percent.
_TOLERANCE = 1.1
# Longer than the window that is looked at, so that one short spike never fills it.
_PATIENCE_S = 1.5 * WINDOW_S
_LONGEST_STEP_S = 1.0
_MIN_RETRY_S, _MAX_RETRY_S = 5.0, 120.0
_MIN_HOLD_S, _MAX_HOLD_S = 60.0, 900.0


@dataclass(frozen=True, slots=True)
class Admitted:
    """The stream is open; `cores` are kept for it, None where nothing is known."""

    cores: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The stream must not open now: why, and after how many seconds it is worth another try."""

    reason: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Eviction:
    """A stream on probation that must be closed again."""

    stream_id: str
    reason: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class _Lesson:
    cores: float
    until: float


class Admission:
    """Decides over newcomers by the measured load of those inside; not safe for threads. `now` never goes back.

    - A newcomer is let in when what it will need fits into `share` of the `cores`, and the masks of the others are
      in time. Where nothing is known, or nobody is served whom it could harm, it is let in.
    - It is on probation for its first `PROBATION_S` seconds of frames. While the measured load stays over the limit,
      or the masks of most established streams stay late, `review` names the youngest on probation.
      Established streams, and the one that was there first, are never named.
    - Who says the same as one that was closed again is judged, for a while that doubles, by what that one needed.
      If masks had been late, the limit is lower for as long, and then one stream at a time may try to pass it. So
      nobody goes in and out in a loop.
    - Promised is `promise_s` from arrival to encoded mask for 99 % of the frames.

    Posted pictures and other streams that were not admitted here are ignored by every method.
    """

    def __init__(
        self, cores: int, *, is_enabled: bool = True, share: float = SHARE, promise_s: float = PROMISE_S
    ) -> None:
        self._cores = cores
        self._limit_cores = share * cores
        self._promise_s = promise_s
        self._is_enabled = is_enabled
        self._costs = ProcessorCosts()
        self._streams: dict[str, StreamLoad] = {}  # the oldest first
        self._lessons: dict[Newcomer, _Lesson] = {}
        self._ceiling = _Lesson(self._limit_cores, 0.0)
        self._hold_s = _MIN_HOLD_S
        self._reviewed_at = float("inf")
        self._overloaded_s = 0.0
        self._late_s = 0.0

    def learn(self, codec: str, pixels: int, picture_s: float, mask_s: float) -> None:
        """Teach it, before the first stream, what a frame costs in processor seconds (see `serve`)."""
        self._costs.add(codec, pixels, picture_s, mask_s)

    def change_model(self, mask_s: float, now: float) -> None:
        """Another model makes the masks, at about `mask_s` processor seconds each: what it costs is measured anew.

        Streams keep their places, and are promised a latency anew, since the pace of the model is part of it.
        """
        self._costs.change_model(mask_s)
        for stream in self._streams.values():
            stream.change_model(mask_s, now)
        self._lessons.clear()
        self._ceiling = _Lesson(self._limit_cores, 0.0)
        self._hold_s = _MIN_HOLD_S
        self._overloaded_s = self._late_s = 0.0

    def admit(self, stream_id: str, newcomer: Newcomer, now: float) -> Admitted | Refused:
        """Let a stream in or not. Raises ValueError when it is in already. Who is in must `close`."""
        if stream_id in self._streams:
            raise ValueError(f"stream {stream_id!r} is open")
        if not self._is_enabled:
            return Admitted(None)
        cores = self._estimate(newcomer, now)
        if any(not stream.newcomer.is_elastic for stream in self._streams.values()) and cores is not None:
            reason = self._object(newcomer, cores, now)
            if reason is not None:
                return Refused(reason, self._retry_after(now))
            if self.count_used(now) + cores > self._ceiling.cores:
                self._ceiling = _Lesson(self._ceiling.cores, now + PROBATION_S)
        self._streams[stream_id] = StreamLoad(newcomer, cores or 0.0, now)
        return Admitted(cores)

    def receive(self, stream_id: str, now: float) -> None:
        """A frame of the stream has arrived, whatever becomes of it."""
        if stream := self._streams.get(stream_id):
            stream.receive(now)

    def serve(
        self, stream_id: str, *, pixels: int, picture_s: float, mask_s: float, latency_s: float, now: float
    ) -> None:
        """A frame's mask is encoded.

        `picture_s` are the processor seconds of decode and prepare, `mask_s` those of inference (of one frame,
        over all threads) and encoding; `pixels` is the size of its picture, `latency_s` the time since it arrived.
        """
        if stream := self._streams.get(stream_id):
            stream.serve(pixels, picture_s, mask_s, latency_s, now)
            fps = None if stream.newcomer.is_elastic else stream.fps
            self._costs.add(stream.newcomer.codec, pixels, picture_s, mask_s, fps)

    def close(self, stream_id: str) -> None:
        """The stream has gone; an unknown one is no matter."""
        self._streams.pop(stream_id, None)

    def count_used(self, now: float) -> float:
        """Cores that the open streams need, or that are kept for them."""
        return sum(stream.hold_cores(now) for stream in self._streams.values())

    def find_limit(self, now: float) -> float:
        """Cores that the streams may use together: less for a while after masks had been late."""
        return self._ceiling.cores if self._ceiling.until > now else self._limit_cores

    def review(self, now: float) -> tuple[Eviction, ...]:
        """The streams that must be closed again; call it once or twice a second. They count as closed from now."""
        passed_s = min(max(now - self._reviewed_at, 0.0), _LONGEST_STEP_S)
        self._reviewed_at = now
        self._lessons = {key: lesson for key, lesson in self._lessons.items() if lesson.until > now}
        load_cores = sum(stream.measure_cores(now) for stream in self._streams.values())
        is_overloaded = load_cores > self._limit_cores * _TOLERANCE
        late_share = self._measure_late_share(now)
        self._overloaded_s = self._overloaded_s + passed_s if is_overloaded else 0.0
        self._late_s = self._late_s + passed_s if late_share else 0.0
        if not is_overloaded and not late_share:
            self._settle(now)
        if self._overloaded_s >= _PATIENCE_S:
            return self._evict_overload(load_cores, now)
        if self._late_s >= _PATIENCE_S:
            return self._evict_youngest(load_cores, late_share, now)
        return ()

    def _estimate(self, newcomer: Newcomer, now: float) -> float | None:
        cores = self._costs.estimate(newcomer)
        lesson = self._lessons.get(newcomer)
        return max(cores or 0.0, lesson.cores) if lesson and lesson.until > now else cores

    def _object(self, newcomer: Newcomer, cores: float, now: float) -> str | None:
        """What speaks against a newcomer, if anything does."""
        if self._late_s >= _PATIENCE_S:
            return (
                f"More than 1 % of the frames of the streams already served take longer than "
                f"{self._promise_s * 1000:.0f} ms."
            )
        limit_cores = self.find_limit(now)
        free_cores = limit_cores - self.count_used(now)
        if cores <= free_cores:
            return None
        return (
            f"This {newcomer} would need {cores:.2f} cores, {max(free_cores, 0.0):.2f} of {self._cores} are free "
            f"(streams may use {limit_cores:.2f})."
        )

    def _retry_after(self, now: float) -> float:
        """When a place may be free: what has run for t will run for about t more, and one that leaves is enough."""
        leaving_per_s = sum(1 / max(now - stream.opened_at, 1.0) for stream in self._streams.values())
        return min(max(1 / leaving_per_s, _MIN_RETRY_S), _MAX_RETRY_S)

    def _measure_late_share(self, now: float) -> float:
        """The mean late share of those with a promise; 0 unless most have late frames: one alone is its own fault."""
        measured = [stream.measure_late_share(now) for stream in self._streams.values()]
        shares = [share for share in measured if share is not None]
        late = sum(share > 0 for share in shares)
        return sum(shares) / len(shares) if 2 * late > len(shares) else 0.0

    def _settle(self, now: float) -> None:
        for stream in self._streams.values():
            if now >= stream.settles_at:
                if not stream.is_established:
                    self._hold_s = _MIN_HOLD_S
                    if self.count_used(now) > self._ceiling.cores:
                        self._ceiling = _Lesson(self._limit_cores, 0.0)
                stream.settle(self._promise_s, now)

    def _find_evictable(self, now: float) -> list[str]:
        """Streams on probation that may be the cause, the youngest first; never the one that was there before all."""
        first = [stream_id for stream_id, stream in self._streams.items() if not stream.newcomer.is_elastic][
            :1
        ]
        return [
            stream_id
            for stream_id, stream in reversed(self._streams.items())
            if not stream.is_established and now - stream.began_at >= _PATIENCE_S and stream_id not in first
        ]

    def _evict_overload(self, load_cores: float, now: float) -> tuple[Eviction, ...]:
        limit_cores = self._limit_cores * _TOLERANCE
        loads = {
            stream_id: self._streams[stream_id].measure_cores(now) for stream_id in self._find_evictable(now)
        }
        evicted: list[str] = []
        left_cores = load_cores
        for stream_id, cores in loads.items():
            if left_cores > limit_cores and cores > 0:
                evicted.append(stream_id)
                left_cores -= cores
        for stream_id in tuple(evicted):  # a small one may stay when an older, large one has to go anyway
            if left_cores + loads[stream_id] <= limit_cores:
                evicted.remove(stream_id)
                left_cores += loads[stream_id]
        reason = f"The streams need {load_cores:.2f} cores and may use {self._limit_cores:.2f}; this one came last."
        return self._evict(evicted, reason, now)

    def _evict_youngest(self, load_cores: float, late_share: float, now: float) -> tuple[Eviction, ...]:
        youngest = self._find_evictable(now)[:1]
        if youngest:
            self._ceiling = _Lesson(min(self._limit_cores, load_cores) * 0.9, now + self._hold_s)
        reason = (
            f"With this stream {late_share:.0%} of the frames of those served before take longer than "
            f"{self._promise_s * 1000:.0f} ms."
        )
        return self._evict(youngest, reason, now)

    def _evict(self, stream_ids: list[str], reason: str, now: float) -> tuple[Eviction, ...]:
        if not stream_ids:
            return ()
        self._overloaded_s = self._late_s = 0.0
        for stream_id in stream_ids:
            stream = self._streams.pop(stream_id)
            self._lessons[stream.newcomer] = _Lesson(stream.measure_cores(now), now + self._hold_s)
        self._hold_s = min(2 * self._hold_s, _MAX_HOLD_S)
        return tuple(Eviction(stream_id, reason, self._retry_after(now)) for stream_id in stream_ids)
