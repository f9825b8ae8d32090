"""What one open stream asks of the machine, and how late its masks are. Pure."""

from __future__ import annotations

import statistics
from collections import deque

from service.pipeline.processor_costs import Newcomer, RunningMean

PROBATION_S = 10.0
WINDOW_S = 2.0
_MIN_SPAN_S = 1.0
_ENOUGH = 3
_PAUSE_S = 30.0
_LATE_SHARE = 0.01
_MIN_LATE = 3
_OWN_PACE = 1.5


class StreamLoad:
    """One stream's rate, costs and latencies over the last `WINDOW_S` seconds.

    Its load is what it needs for every frame it sends, whether all are served or not: frames per second x
    processor seconds per frame. Until that has been measured, for a second, the load is what was reserved for
    it. A stream that pauses keeps its place for `_PAUSE_S`, for it will go on.
    """

    def __init__(self, newcomer: Newcomer, reserved_cores: float, opened_at: float) -> None:
        self.newcomer = newcomer
        self.opened_at = opened_at
        self.is_established = False
        self.began_at = float("inf")
        """When its first frame arrived; from then on it is on probation until `settles_at`, or longer."""
        self.settles_at = float("inf")
        self.fps = 0.0
        """Frames per second when it last sent; 0 while too few have come."""
        self._reserved_cores = reserved_cores
        self._promised_s = float("inf")
        self._pixels = 0
        self._arrived_at: deque[float] = deque(maxlen=1000)
        self._latencies: deque[tuple[float, float]] = deque(maxlen=1000)
        self._picture_s = RunningMean()
        self._mask_s = RunningMean()

    def receive(self, now: float) -> None:
        """A frame has arrived."""
        if not self._arrived_at:
            self.began_at = now
            self.settles_at = now + PROBATION_S
        self._arrived_at.append(now)
        while len(self._arrived_at) > 2 and self._arrived_at[0] < now - WINDOW_S:
            self._arrived_at.popleft()
        span_s = now - self._arrived_at[0]
        if span_s >= _MIN_SPAN_S:  # frames that come in a burst are no rate
            self.fps = (len(self._arrived_at) - 1) / span_s

    def serve(self, pixels: int, picture_s: float, mask_s: float, latency_s: float, now: float) -> None:
        """A frame has got its mask; costs in processor seconds, `latency_s` from arrival to encoded mask."""
        if self._pixels and pixels != self._pixels:
            self._start_anew(now)
        self._pixels = pixels
        self._picture_s.add(picture_s)
        self._mask_s.add(mask_s)
        self._latencies.append((now, latency_s))

    def change_model(self, mask_s: float, now: float) -> None:
        """Its masks will cost about `mask_s`, and come at another pace."""
        self._promise_anew(now)
        count = min(self._mask_s.count, _ENOUGH)
        self._mask_s = RunningMean()
        for _ in range(count):
            self._mask_s.add(mask_s)

    def measure_cores(self, now: float) -> float:
        """Cores it is seen to need; 0 for one that is elastic, is silent for long, or is not measured yet."""
        is_silent = not self._arrived_at or now - self._arrived_at[-1] > _PAUSE_S
        if is_silent or self.newcomer.is_elastic or self._mask_s.count < _ENOUGH:
            return 0.0
        return self.fps * (self._picture_s.value + self._mask_s.value)

    def hold_cores(self, now: float) -> float:
        """Cores that must be kept for it: as measured, or as reserved for as long as nothing is."""
        measured = self.measure_cores(now)
        is_expected = now - self.opened_at <= _PAUSE_S
        return measured if measured or not is_expected else self._reserved_cores

    def measure_late_share(self, now: float) -> float | None:
        """The share of its last frames that came later than promised; 0 where that is no more than chance.

        None where nothing is promised, or no frame came lately. An elastic stream's frames wait by design.
        """
        recent_s = self._list_latencies(now)
        if not recent_s or self._promised_s == float("inf") or self.newcomer.is_elastic:
            return None
        late = sum(latency_s > self._promised_s for latency_s in recent_s)
        is_more_than_chance = late >= _MIN_LATE and late > _LATE_SHARE * len(recent_s)
        return late / len(recent_s) if is_more_than_chance else 0.0

    def settle(self, promise_s: float, now: float) -> None:
        """Establish it, and promise it a latency once and for all.

        That is `promise_s`, or its own pace where that is slower: a picture which takes longer to decode than
        others may take in all is not late because of them.
        """
        self.is_established = True
        recent_s = self._list_latencies(now)
        if self._promised_s == float("inf") and recent_s:
            self._promised_s = max(promise_s, _OWN_PACE * statistics.median(recent_s))

    def _list_latencies(self, now: float) -> list[float]:
        return [latency_s for at, latency_s in self._latencies if at > now - WINDOW_S]

    def _start_anew(self, now: float) -> None:
        """Its pictures have another size now, with other costs and another pace."""
        self._promise_anew(now)
        self._picture_s = RunningMean()

    def _promise_anew(self, now: float) -> None:
        self.settles_at = max(self.settles_at, now + 2 * WINDOW_S)
        self._promised_s = float("inf")
        self._latencies.clear()
