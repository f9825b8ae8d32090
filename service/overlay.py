"""Masks drawn over pictures, for people: a translucent tint in each class's colour, and an outline."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from service.contract.geometry import Image, Mask
from service.contract.model_card import ClassInfo

_OPACITY = 0.4
_ROWS_PER_OUTLINE_PIXEL = 360  # 2 pixels at 720p, 3 at 1080p: thin, and still seen when the picture is shrunk


def draw_overlay(image_hwc: Image, mask_hw: Mask, classes: Sequence[ClassInfo]) -> Image:
    """A copy of uint8 RGB `(H, W, 3)` with every class of uint8 `(H, W)` but the background drawn on it.

    Raises ValueError when picture and mask differ in size or the mask holds an id that `classes` lacks.
    """
    if image_hwc.shape[:2] != mask_hw.shape:
        raise ValueError(f"the picture is {image_hwc.shape[:2]}, the mask {mask_hw.shape}")
    if int(mask_hw.max(initial=0)) >= len(classes):
        raise ValueError(f"the mask holds class {mask_hw.max()}, the card has {len(classes)} classes")
    colours = np.array([info.colour for info in classes], np.uint8)
    tinted_hwc = cv2.addWeighted(image_hwc, 1 - _OPACITY, colours[mask_hw], _OPACITY, 0)
    drawn_hwc = np.where((mask_hw > 0)[:, :, None], tinted_hwc, image_hwc)
    thickness = max(1, round(image_hwc.shape[0] / _ROWS_PER_OUTLINE_PIXEL))
    for info in classes[1:]:
        shape_hw = (mask_hw == info.id).astype(np.uint8)
        contours = cv2.findContours(shape_hw, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[-2]
        cv2.drawContours(drawn_hwc, contours, -1, info.colour, thickness)
    return np.asarray(drawn_hwc, dtype=np.uint8)
