"""How fast is too fast. Pure: the instants are given."""

from __future__ import annotations


class TokenBucket:
    """Lets `rate` units a second through, and `burst` at once after a pause; both above 0. For one thread."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level = burst
        self._seen_at: float | None = None

    def take(self, now: float) -> float:
        """0 where one unit is there, and it is taken; otherwise the seconds until it is, and nothing is taken."""
        self._fill(now)
        if self._level >= 1.0:
            self._level -= 1.0
            return 0.0
        return (1.0 - self._level) / self._rate

    def charge(self, units: float, now: float) -> float:
        """Take the units in any case; the seconds to wait until they have been earned."""
        self._fill(now)
        self._level -= units
        return max(0.0, -self._level / self._rate)

    def _fill(self, now: float) -> None:
        if self._seen_at is not None:
            self._level = min(self._burst, self._level + max(0.0, now - self._seen_at) * self._rate)
        self._seen_at = now
