"""What a decoder does next when it is slower than its source. Pure: no thread and no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

_PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class Unit:
    """One access unit as it waits for the decoder. `payload` is whatever the decoder takes."""

    sequence: int
    arrived_at: float
    is_key: bool
    payload: Any


class Backlog:
    """Access units waiting for a decoder, in order.

    A unit cannot be left out without harm to those that refer to it. A live decoder that is more than `behind_s` late
    therefore

    - goes on at the newest key frame that waits, if one does;
    - otherwise decodes on without showing what is late (`is_stale`): after a moment's trouble it catches up, for
      decoding alone is several times as fast as the video;
    - and if it is still late after half a second of that, gives up everything until a key frame comes.

    With `behind_s` None nothing is ever given up.
    """

    def __init__(self, behind_s: float | None) -> None:
        self._behind_s = behind_s
        self._waiting: deque[Unit] = deque()
        self._late_since: float | None = None
        self._seeks_key = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, unit: Unit) -> None:
        """A unit has come."""
        self._waiting.append(unit)

    def take(self, now: float) -> tuple[Unit | None, list[Unit]]:
        """The unit to decode now, if there is one, and those given up before it."""
        given_up = self._give_up(now)
        return (self._waiting.popleft() if self._waiting else None), given_up

    def is_stale(self, arrived_at: float, now: float) -> bool:
        """Whether a decoded picture that came at `arrived_at` is late, and another one waits to be shown instead."""
        return bool(self._waiting) and self._is_late(arrived_at, now)

    def _is_late(self, arrived_at: float, now: float) -> bool:
        return self._behind_s is not None and now - arrived_at > self._behind_s

    def _give_up(self, now: float) -> list[Unit]:
        if not self._waiting:
            return []
        if not self._seeks_key and not self._is_late(self._waiting[0].arrived_at, now):
            self._late_since = None
            return []
        if self._late_since is None:
            self._late_since = now
        newest_key = max((place for place, unit in enumerate(self._waiting) if unit.is_key), default=None)
        if newest_key is None:
            self._seeks_key = self._seeks_key or now - self._late_since > _PATIENCE_S
            count = len(self._waiting) if self._seeks_key else 0
        else:
            count = newest_key
            if count or self._seeks_key:
                self._seeks_key, self._late_since = False, None
        return [self._waiting.popleft() for _ in range(count)]
