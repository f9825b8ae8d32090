"""What whoever opens a stream asks for."""

from __future__ import annotations

from dataclasses import dataclass

from service.pipeline.latest_frames import Mode
from service.pipeline.processor_costs import Newcomer


@dataclass(frozen=True, slots=True)
class StreamTerms:
    """`deadline_s` is from a frame's arrival to its mask being sent; None takes the service's own.

    Streams of higher `priority` go first when frames wait. `fps`, `width` and `height` are what the stream will have,
    where that is known: admission reckons with them.
    """

    mode: Mode = Mode.LATEST
    deadline_s: float | None = None
    priority: int = 0
    fps: float | None = None
    width: int | None = None
    height: int | None = None

    def describe(self, codec: str) -> Newcomer:
        """The stream as admission sees it."""
        return Newcomer(codec, self.width, self.height, self.fps, is_elastic=self.mode is Mode.EVERY)
