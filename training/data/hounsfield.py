"""Windowing of CT: a range of Hounsfield units as grey levels."""

from __future__ import annotations

import numpy as np

from training.data.volumes import Levels


def apply_window(values_hu: np.ndarray, window_hu: tuple[float, float]) -> Levels:
    """HU as uint8: the window's lower end and less is 0, its upper end and more is 255."""
    low, high = window_hu
    return ((values_hu - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8)


def describe_window(window_hu: tuple[float, float]) -> str:
    """What `apply_window` does, for whoever sends pictures to a service."""
    low, high = window_hu
    return f"8-bit grey, {low:g} to {high:g} HU as 0 to 255"
