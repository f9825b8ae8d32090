"""How long a frame that is taken now will need until it is sent, from what the last frames needed. Pure."""

from __future__ import annotations

from collections import deque

from service.frames import Stage

_SHARED = (Stage.INFER, Stage.ENCODE)
_KEPT = 64
_WINDOW_S = 2.0
_ENOUGH = 8
_HIGH, _LOW = 0.9, 0.1


class CostEstimate:
    """The time from `take` to sent: for each stage still to come a quantile of its last durations, added up.

    - Of inference and encoding, which all streams share, a high quantile: no single spike moves it much, and a frame is
      given up when more than about one in ten like it would come too late.
    - Of sending a low one, of the frame's own stream: what it takes a viewer who reads. One who does not, or who reads
      up after a pause, is served late by its own doing; no frame is given up for it while another could see it.
    - Only the last `_WINDOW_S` seconds count, and a stage with fewer than `_ENOUGH` durations counts nothing.
      Where every frame is given up nothing is measured any more, so after that time a few are let through
      again and measured: an estimate that was once too high cannot stop a stream for good.
    """

    def __init__(self) -> None:
        self._shared = {stage: _Durations(_HIGH) for stage in _SHARED}
        self._sending: dict[str, _Durations] = {}

    def add(self, stage: Stage, seconds: float, now: float, stream_id: str) -> None:
        """Take in one duration of a stream's frame; those of stages before `take` are ignored."""
        if stage is Stage.SEND:
            self._sending.setdefault(stream_id, _Durations(_LOW)).add(seconds, now)
        elif stage in self._shared:
            self._shared[stage].add(seconds, now)

    def forget(self, stream_id: str) -> None:
        """The stream has ended."""
        self._sending.pop(stream_id, None)

    def estimate_ahead(self, now: float, stream_id: str) -> float:
        """Seconds that a frame of a stream, taken at `now`, will need until it is sent; 0 where too little is known."""
        ahead_s = sum(durations.estimate(now) for durations in self._shared.values())
        sending = self._sending.get(stream_id)
        return ahead_s + (sending.estimate(now) if sending else 0.0)


class _Durations:
    """The last durations of a stage, and one quantile of them."""

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._measured: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def add(self, seconds: float, now: float) -> None:
        self._measured.append((now, seconds))

    def estimate(self, now: float) -> float:
        while self._measured and self._measured[0][0] < now - _WINDOW_S:
            self._measured.popleft()
        if len(self._measured) < _ENOUGH:
            return 0.0
        durations_s = sorted(seconds for _, seconds in self._measured)
        return durations_s[int(self._quantile * (len(durations_s) - 1))]
