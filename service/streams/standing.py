"""Whether a live stream has earned an equal share of the processor. Pure: no clock."""

from __future__ import annotations


class Standing:
    """A stream is proven once it has been sound for `proof_s` seconds; damage begins that time anew.

    Whoever connects, breaks off and connects again, or sends what cannot be decoded, is never proven.
    """

    def __init__(self, proof_s: float, now: float) -> None:
        self._proof_s = proof_s
        self._sound_since = now

    def note_damage(self, now: float) -> None:
        """Something of the stream could not be decoded."""
        self._sound_since = now

    def is_proven(self, now: float) -> bool:
        """Whether it has been sound for long enough."""
        return now - self._sound_since >= self._proof_s
