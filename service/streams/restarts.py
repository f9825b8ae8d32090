"""When a source that failed is tried again. Pure: no clock."""

from __future__ import annotations


class Restarts:
    """Back-off that doubles from `first_s` to `most_s`; `cap` failures in a row are the end.

    A source that lived for `healthy_s` starts anew: its next failure counts as the first.
    """

    def __init__(self, cap: int, first_s: float, most_s: float, healthy_s: float) -> None:
        self._cap = cap
        self._first_s = first_s
        self._most_s = most_s
        self._healthy_s = healthy_s
        self.failures = 0

    def fail(self, lived_s: float, *, is_patient: bool = False) -> float | None:
        """Seconds to wait before the next attempt, after one that lived `lived_s`; None: give up.

        A patient source is never given up: it is tried at the longest pause for as long as it takes.
        """
        if lived_s >= self._healthy_s:
            self.failures = 0
        self.failures += 1
        if self.failures > self._cap:
            return self._most_s if is_patient else None
        return float(min(self._most_s, self._first_s * 2 ** (self.failures - 1)))
