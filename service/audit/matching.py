"""Which entry of a record belongs to which frame of a video. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Protocol

from service.audit.entries import DropEntry, MaskEntry

Ending = MaskEntry | DropEntry
NOT_RECORDED = "not in the record"


class Matching(Protocol):
    """Finds how a frame ended."""

    def find(self, number: int, pts_s: float | None) -> MaskEntry | str:
        """The entry of the video's frame `number`, from 1, shown at `pts_s`; or why it has no mask, in words."""
        ...


class NumberMatching:
    """The n-th frame of the stream is the n-th of the video: pictures that a client read from it and pushed."""

    def __init__(self, endings: Iterable[Ending]) -> None:
        self._endings = {ending.sequence: ending for ending in endings}

    def find(self, number: int, pts_s: float | None) -> MaskEntry | str:
        """See `Matching.find`."""
        ending = self._endings.get(number)
        if ending is None:
            return NOT_RECORDED
        return ending if isinstance(ending, MaskEntry) else _explain({ending.reason})


class TimeMatching:
    """A mask belongs to the frame that is shown at its own time, give or take `tolerance_s`.

    `times_s` gives the time of each frame of the stream where the record itself has none: the n-th entry for sequence
    number n. A frame without a mask was lost for one of the causes that the record has between its neighbours, unless
    the drop has a time of its own.
    """

    def __init__(
        self,
        endings: Iterable[Ending],
        *,
        times_s: Sequence[float | None] = (),
        shift_s: float = 0.0,
        tolerance_s: float = 1e-3,
    ) -> None:
        self._tolerance_s = tolerance_s
        self._timed: list[tuple[float, Ending]] = []
        self._untimed: list[DropEntry] = []
        for ending in endings:
            pts_s = ending.pts_s
            if pts_s is None and ending.sequence <= len(times_s):
                pts_s = times_s[ending.sequence - 1]
            if pts_s is not None:
                self._timed.append((pts_s + shift_s, ending))
            elif isinstance(ending, DropEntry):
                self._untimed.append(ending)
        self._timed.sort(key=lambda one: one[0])
        self._untimed.sort(key=lambda drop: drop.sequence)

    def find(self, number: int, pts_s: float | None) -> MaskEntry | str:
        """See `Matching.find`."""
        if pts_s is None:
            return NOT_RECORDED
        at = bisect.bisect_left(self._timed, pts_s, key=lambda one: one[0])
        around = self._timed[max(0, at - 1) : at + 1]
        near = [one for one in around if abs(one[0] - pts_s) <= self._tolerance_s]
        if not near:
            return self._explain_gap(at)
        ending = min(near, key=lambda one: abs(one[0] - pts_s))[1]
        return ending if isinstance(ending, MaskEntry) else _explain({ending.reason})

    def _explain_gap(self, at: int) -> str:
        before = self._timed[at - 1][1].sequence if at else 0
        after = self._timed[at][1].sequence if at < len(self._timed) else None
        reasons = {
            drop.reason
            for drop in self._untimed
            if before < drop.sequence and (after is None or drop.sequence < after)
        }
        return _explain(reasons) if reasons else NOT_RECORDED


def _explain(reasons: set[str]) -> str:
    return "no mask: " + " or ".join(sorted(reasons))
