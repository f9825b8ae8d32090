"""What a frame costs in processor time, learned from the frames served, and what a new stream will cost. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

ASSUMED_FPS = 30.0
_WEIGHT = 0.05
_MAX_CLASSES = 64


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A stream that wants to open, and what it says about itself; all but the codec may be unknown.

    An elastic one (lossless, held back until there is room) takes what the others leave, so it costs nobody
    a core; it can only make them late.
    """

    codec: str
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    is_elastic: bool = False

    @property
    def pixels(self) -> int | None:
        return self.width * self.height if self.width and self.height else None

    def __str__(self) -> str:
        size = f"{self.width} x {self.height}" if self.pixels else "size unknown"
        return f"stream ({self.codec}, {size}, {f'{self.fps:g} fps' if self.fps else 'fps unknown'})"


class RunningMean:
    """A mean that forgets. Single outliers are cut, and so is the first value, which pays for start-up."""

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        if self.count <= 2:
            self.value = value if self.count == 1 else min(self.value, value)
            return
        cut = min(value, 4 * self.value + 0.001)
        self.value += max(1 / self.count, _WEIGHT) * (cut - self.value)


@dataclass(slots=True)
class _Class:
    picture_s: RunningMean = field(default_factory=RunningMean)
    fps: float | None = None


class ProcessorCosts:
    """Processor seconds of one frame: its picture's (decode, prepare) per codec and size, its mask's for all alike.

    The mask is made at the model's size, so it costs the same whatever the picture; only the picture's part is
    scaled to a size that has not been seen.
    """

    def __init__(self) -> None:
        self._classes: dict[tuple[str, int], _Class] = {}  # the one seen last at the end
        self._mask_s = RunningMean()

    def add(self, codec: str, pixels: int, picture_s: float, mask_s: float, fps: float | None = None) -> None:
        """Learn from a frame, of a stream of `fps` where that is known."""
        known = self._classes.pop((codec, pixels), None) or _Class()
        known.picture_s.add(picture_s)
        known.fps = fps or known.fps
        self._classes[codec, pixels] = known
        if len(self._classes) > _MAX_CLASSES:
            del self._classes[next(iter(self._classes))]
        self._mask_s.add(mask_s)

    def change_model(self, mask_s: float) -> None:
        """Forget what masks cost: they will cost about `mask_s`."""
        self._mask_s = RunningMean()
        self._mask_s.add(mask_s)

    def estimate(self, newcomer: Newcomer) -> float | None:
        """Cores that a newcomer will keep busy; None while no frame has been measured.

        One that does not say its size or rate is taken for one like the last of its codec.
        """
        if newcomer.is_elastic:
            return 0.0
        if not self._classes:
            return None
        (_, pixels), known = self._find_nearest(newcomer)
        picture_s = known.picture_s.value * (newcomer.pixels or pixels) / pixels
        return (newcomer.fps or known.fps or ASSUMED_FPS) * (picture_s + self._mask_s.value)

    def _find_nearest(self, newcomer: Newcomer) -> tuple[tuple[str, int], _Class]:
        def distance(item: tuple[tuple[str, int], _Class]) -> tuple[bool, float]:
            codec, pixels = item[0]
            sizes = abs(math.log((newcomer.pixels or pixels) / pixels))
            return codec != newcomer.codec, sizes

        return min(reversed(self._classes.items()), key=distance)
