"""How the synthetic endoscope sees: the round view, light, shadows, smoke, blur, noise and captions."""

from __future__ import annotations

import math
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from service.contract.geometry import Image, Mask
from service.streams.synthetic_tissue import smooth_noise

ViewShape = Literal["random", "full", "circle", "clipped", "inset"]
VIEW_SHAPES: tuple[str, ...] = get_args(ViewShape)

_LIGHT_SCALE = 1 / 140
_COARSE = 8


class View:
    """The endoscope's view of one scene; everything but the picture's size and `shape` is random.

    `centre` and `extent` are the middle and the half axes in pixels of what can be seen; `visible_hw` is
    uint8, 255 where the picture shows the body and 0 in the black surround and under boxes.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int, shape: ViewShape) -> None:
        self._height, self._width = height, width
        if shape == "random":
            shape = ("full", "circle", "clipped", "inset")[int(rng.choice(4, p=(0.4, 0.25, 0.25, 0.1)))]
        self._place(rng, shape)
        self.visible_hw = self._cut(rng, shape)
        self._visible_hwc = cv2.cvtColor(self.visible_hw, cv2.COLOR_GRAY2RGB)
        self._light = self._shine(rng)
        self._shadow = float(rng.uniform(0.15, 0.6))
        self._shadow_xy = rng.uniform(-0.03, 0.03, 2) * min(self.extent)
        self._soften = int(rng.choice((3, 3, 3, 5, 7), p=(0.4, 0.2, 0.15, 0.15, 0.1)))
        self._smoke = self._fume(rng) if rng.random() < 0.22 else None
        self._noise = self._sensor_noise(rng)
        self._caption = self._write(rng) if rng.random() < 0.25 else None

    def _place(self, rng: np.random.Generator, shape: str) -> None:
        height, width = self._height, self._width
        self.centre = (width / 2, height / 2)
        self.extent = (width / 2, height / 2)
        if shape == "circle":
            radius = min(height, width) * float(rng.uniform(0.44, 0.5))
            self.extent = (radius * float(rng.uniform(0.8, 1.15)), radius)
        elif shape == "clipped":
            radius = min(height, width) * float(rng.uniform(0.53, 0.75))
            self.extent = (radius * float(rng.uniform(0.9, 1.2)), radius)
        elif shape == "inset":
            self.extent = (width / 2 * float(rng.uniform(0.7, 1)), height / 2 * float(rng.uniform(0.85, 1)))
        if shape in ("circle", "clipped"):
            shift = rng.normal(0, 0.02, 2) * min(height, width)
            self.centre = (width / 2 + float(shift[0]), height / 2 + float(shift[1]))

    def _cut(self, rng: np.random.Generator, shape: str) -> Mask:
        visible = np.full((self._height, self._width), 255, np.uint8)
        (x, y), (across, down) = self.centre, self.extent
        if shape in ("circle", "clipped"):
            visible.fill(0)
            axes = (round(across * 16), round(down * 16))
            cv2.ellipse(visible, (round(x * 16), round(y * 16)), axes, 0, 0, 360, 255, -1, cv2.LINE_8, 4)
        elif shape == "inset":
            visible.fill(0)
            visible[round(y - down) : round(y + down), round(x - across) : round(x + across)] = 255
        if rng.random() < 0.25:
            for _ in range(int(rng.integers(1, 3))):
                self._cover(rng, visible)
        return visible

    def _cover(self, rng: np.random.Generator, visible: Mask) -> None:
        """A black box over a name, at the border."""
        box_h, box_w = int(self._height * rng.uniform(0.03, 0.14)), int(self._width * rng.uniform(0.05, 0.3))
        top = int(rng.choice((0, self._height - box_h, int(rng.uniform(0, self._height - box_h)))))
        left = int(rng.choice((0, self._width - box_w)))
        visible[top : top + box_h, left : left + box_w] = 0

    def _shine(self, rng: np.random.Generator) -> Image:
        """The lamp's light `(h, w, 3)` on a coarse grid: bright in the middle, darker outwards, tinted."""
        rows, columns = self._height // _COARSE + 2, self._width // _COARSE + 2
        x, y = (c + e * float(rng.normal(0, 0.25)) for c, e in zip(self.centre, self.extent, strict=True))
        grid_y, grid_x = np.mgrid[0:rows, 0:columns] * float(_COARSE)
        distance = ((grid_x - x) / self.extent[0]) ** 2 + ((grid_y - y) / self.extent[1]) ** 2
        peak, fall = float(rng.uniform(0.85, 1.45)), float(rng.uniform(0.15, 1.1))
        light = peak / (1 + fall * distance)
        patches = 1 + 0.12 * smooth_noise(rng, (rows, columns), rows * 0.5)
        cast = 1 + rng.normal(0, 0.05, 3) + np.array((0.04, 0.0, -0.03))
        lit = np.clip((light * patches)[..., None] * cast / _LIGHT_SCALE, 0, 255)
        return np.asarray(lit, np.uint8)

    def _fume(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Smoke from which a moving window is cut, float32 0 to 1 on the coarse grid."""
        rows, columns = self._light.shape[:2]
        fume = smooth_noise(rng, (rows * 2, columns * 2), rows * 0.7, 4) * 0.16 + float(
            rng.uniform(0.15, 0.55)
        )
        return np.asarray(np.clip(fume, 0, 0.8), np.float32)

    def _sensor_noise(self, rng: np.random.Generator) -> Image:
        """Noise round 16 with some width to spare, so that each picture can take another part of it."""
        deviation = float(rng.choice((0.8, 2.0, 4.0), p=(0.5, 0.35, 0.15)))
        noise = np.empty((self._height + 32, self._width + 32, 3), np.int8)
        cv2.setRNGSeed(int(rng.integers(1 << 30)))
        cv2.randn(noise, np.zeros(3), np.full(3, deviation))
        return np.asarray(np.clip(noise.astype(np.int16) + 16, 0, 255), np.uint8)

    def _write(self, rng: np.random.Generator) -> Image:
        caption = np.zeros((self._height, self._width, 3), np.uint8)
        scale = self._height / 720 * 0.5
        for line in range(int(rng.integers(1, 4))):
            hour, minute, letter, number = rng.integers((10, 10, 0, 0), (24, 60, 26, 100))
            text = f"{hour}:{minute} {chr(ord('A') + letter)}{number}"
            at = (int(self._width * 0.02), int(self._height * (0.93 - 0.035 * line)))
            cv2.putText(caption, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (225, 225, 225), 1, cv2.LINE_AA)
        return caption

    def shadows(self, mask_hw: Mask) -> Image:
        """What the instruments leave of the light, uint8 `(h, w)` on the coarse grid; 255 is all of it."""
        small = cv2.resize(mask_hw, self._light.shape[1::-1], interpolation=cv2.INTER_NEAREST) * np.uint8(255)
        shift = np.array(((1, 0, self._shadow_xy[0]), (0, 1, self._shadow_xy[1])), np.float32)
        cast = cv2.blur(cv2.warpAffine(small, shift, small.shape[::-1]), (5, 5))
        hidden = cv2.multiply(cast, cv2.bitwise_not(small), scale=self._shadow / 255)
        return np.asarray(cv2.bitwise_not(hidden), np.uint8)

    def show(self, image_hwc: Image, mask_hw: Mask, time_s: float, drift_xy: tuple[float, float]) -> None:
        """Turn a drawn picture into what the camera sends; picture and mask are changed in place.

        `drift_xy` is how far the picture moved during the exposure, in pixels.
        """
        sides = [self._soften + 2 * min(6, int(abs(drift))) for drift in drift_xy]
        if max(sides) > 3:
            cv2.blur(image_hwc, (sides[0], sides[1]), dst=image_hwc)
        else:
            cv2.GaussianBlur(image_hwc, (3, 3), 0, dst=image_hwc)
        shadows_hwc = cv2.cvtColor(self.shadows(mask_hw), cv2.COLOR_GRAY2RGB)
        light: Image = np.asarray(cv2.multiply(self._light, shadows_hwc, scale=1 / 255), np.uint8)
        haze = None
        if self._smoke is not None:
            light, haze = self._blow(light, time_s)
        size = (self._width, self._height)
        cv2.multiply(image_hwc, cv2.resize(light, size), dst=image_hwc, scale=_LIGHT_SCALE)
        if haze is not None:
            cv2.add(image_hwc, cv2.resize(haze, size), dst=image_hwc)
        tick = round(time_s * 1000)
        top, left = tick * 7 % 32, tick * 13 % 32
        noise = self._noise[top : top + self._height, left : left + self._width]
        cv2.addWeighted(image_hwc, 1, noise, 1, -16, dst=image_hwc)
        cv2.bitwise_and(image_hwc, self._visible_hwc, dst=image_hwc)
        cv2.bitwise_and(mask_hw, self.visible_hw, dst=mask_hw)
        if self._caption is not None:
            cv2.add(image_hwc, self._caption, dst=image_hwc)

    def _blow(self, light: Image, time_s: float) -> tuple[Image, Image]:
        """Light that smoke lets through, and light that it throws back."""
        assert self._smoke is not None
        rows, columns = light.shape[:2]
        top = (0.5 + 0.5 * math.sin(time_s * 0.11)) * (rows - 1)
        left = (0.5 + 0.5 * math.sin(time_s * 0.17 + 1)) * (columns - 1)
        shift = np.array(((1, 0, -left), (0, 1, -top)), np.float32)
        amount = cv2.warpAffine(self._smoke, shift, (columns, rows))[..., None]
        dimmed = (light * (1 - amount)).astype(np.uint8)
        return dimmed, (light * amount * 0.9).astype(np.uint8)
