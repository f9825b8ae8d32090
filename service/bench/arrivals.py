"""When the frames of a stream are due. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, get_args

Arrivals = Literal["constant", "poisson"]
ARRIVALS: tuple[str, ...] = get_args(Arrivals)


def plan_arrivals(arrivals: Arrivals, fps: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds from the first frame's, ascending, all below `seconds`; at least one.

    `constant` is a frame every 1/fps, as a camera gives them. `poisson` has the same mean rate with independent
    gaps, so that frames also come in bursts; equal seeds give equal times.
    """
    if arrivals == "constant":
        yield from (index / fps for index in range(max(1, round(fps * seconds))))
        return
    source = random.Random(seed)
    due_s = 0.0
    while True:
        yield due_s
        due_s += source.expovariate(fps)
        if due_s >= seconds:
            return
