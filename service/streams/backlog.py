"""What a decoder does next when it is slower than its source. Pure: no thread and no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Unit:
    """One access unit as it waits for the decoder. `payload` is whatever the decoder takes."""

    sequence: int
    arrived_at: float
    is_key: bool
    payload: Any


class Backlog:
    """Access units waiting for a decoder, in order.

    A unit cannot be left out without harm to those that refer to it, so a live decoder that is more than `behind_s`
    seconds late gives up everything up to the newest key frame that waits, or, where none waits, up to the next one
    to come. With `behind_s` None nothing is ever given up.
    """

    def __init__(self, behind_s: float | None) -> None:
        self._behind_s = behind_s
        self._waiting: deque[Unit] = deque()
        self._seeks_key = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, unit: Unit) -> None:
        """A unit has come."""
        self._waiting.append(unit)

    def take(self, now: float) -> tuple[Unit | None, list[Unit]]:
        """The unit to decode now, if there is one, and those given up before it."""
        if self._waiting and self._is_late(self._waiting[0], now):
            self._seeks_key = True
        given_up = self._give_up() if self._seeks_key else []
        return (self._waiting.popleft() if self._waiting else None), given_up

    def has_newer(self, arrived_at: float, now: float) -> bool:
        """Whether a picture that came at `arrived_at` is late enough, with another one waiting, not to be shown."""
        if self._behind_s is None or not self._waiting:
            return False
        return now - arrived_at > self._behind_s / 2

    def _is_late(self, unit: Unit, now: float) -> bool:
        return self._behind_s is not None and now - unit.arrived_at > self._behind_s

    def _give_up(self) -> list[Unit]:
        """Everything before the newest key frame; without one, everything, and go on seeking."""
        newest_key = max((place for place, unit in enumerate(self._waiting) if unit.is_key), default=None)
        count = len(self._waiting) if newest_key is None else newest_key
        self._seeks_key = newest_key is None
        return [self._waiting.popleft() for _ in range(count)]
