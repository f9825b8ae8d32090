"""How long a frame that is taken now will need until it is sent, from what the last frames needed. Pure."""

from __future__ import annotations

from collections import deque

from service.frames import Stage

_AHEAD = (Stage.INFER, Stage.ENCODE, Stage.SEND)
_KEPT = 64
_WINDOW_S = 2.0
_ENOUGH = 8


class CostEstimate:
    """The time from `take` to sent: for each stage still to come a high quantile of its last durations, added up.

    - A quantile, so neither one spike nor the one viewer who reads slowly moves it much; 0.9 says that a frame is
      given up when more than about one in ten like it would come too late.
    - Only the last `_WINDOW_S` seconds count, and a stage with fewer than `_ENOUGH` durations counts nothing.
      Where every frame is given up nothing is measured any more, so after that time a few are let through
      again and measured: an estimate that was once too high cannot stop a stream for good.
    """

    def __init__(self, quantile: float = 0.9) -> None:
        self._quantile = quantile
        self._measured: dict[Stage, deque[tuple[float, float]]] = {
            stage: deque(maxlen=_KEPT) for stage in _AHEAD
        }

    def add(self, stage: Stage, seconds: float, now: float) -> None:
        """Take in one duration; those of stages before `take` are ignored."""
        if stage in self._measured:
            self._measured[stage].append((now, seconds))

    def estimate_ahead(self, now: float) -> float:
        """Seconds that a frame taken at `now` will need until it is sent; 0 where too little is known."""
        return sum(self._estimate(measured, now - _WINDOW_S) for measured in self._measured.values())

    def _estimate(self, measured: deque[tuple[float, float]], since: float) -> float:
        while measured and measured[0][0] < since:
            measured.popleft()
        if len(measured) < _ENOUGH:
            return 0.0
        durations_s = sorted(seconds for _, seconds in measured)
        return durations_s[int(self._quantile * (len(durations_s) - 1))]
