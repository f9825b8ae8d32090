"""What changes with the step (learning rate, weight of unlabeled terms, picture size): pure functions of the step."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, steps: int, warmup_steps: int, shape: str, power: float = 0.9) -> float:
    """The share of the full learning rate at `step` of `steps`: linear warm-up, then `cosine`, `poly` or `constant`.

    `poly` is (1 - t)^power, the schedule of the Min-Max Similarity paper.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if shape == "poly":
        return float((1 - progress) ** power)
    return 1.0


def ramp_up(step: int, ramp_steps: int) -> float:
    """The Gaussian ramp exp(-5 (1 - t)^2), t = step / ramp_steps up to 1 (Laine and Aila, 2017); 1 without a ramp."""
    if ramp_steps == 0:
        return 1.0
    return math.exp(-5 * (1 - min(1.0, step / ramp_steps)) ** 2)


def progressive_scale(step: int, steps: int, stages: tuple[tuple[float, float], ...]) -> float:
    """The picture scale at `step`: `stages` are (share of the run at which it ends, scale) in order; 1 after the last.

    Training starts on small pictures, which cost a quarter at half the size, and ends at the model's own.
    """
    for until, scale in stages:
        if step < until * steps:
            return scale
    return 1.0
