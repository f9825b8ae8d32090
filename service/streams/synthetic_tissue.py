"""The background of the synthetic scene: organs, fat, vessels and wet highlights, painted once per scene."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from service.contract.geometry import Image

Field = NDArray[np.float32]

_WORKING_PIXELS = 340_000
_LIGHT_X, _LIGHT_Y = 0.12, 0.18


@dataclass(frozen=True)
class Tissue:
    """A kind of tissue: two RGB colours that mix, the kind and size of its bumps, how much vessels show."""

    colour: tuple[int, int, int]
    mottle: tuple[int, int, int]
    bump: str
    roughness: float
    vessels: float


TISSUES = (
    Tissue((208, 138, 128), (190, 96, 98), "fine", 0.5, 1.0),  # bowel serosa
    Tissue((214, 120, 122), (188, 80, 86), "fine", 0.4, 0.8),  # uterus, inflamed bowel
    Tissue((176, 124, 134), (150, 96, 112), "fine", 0.5, 1.0),  # peritoneum
    Tissue((196, 150, 140), (160, 104, 100), "strand", 0.7, 0.7),  # fascia
    Tissue((112, 50, 48), (84, 34, 38), "fine", 0.4, 0.0),  # liver
    Tissue((100, 52, 66), (74, 36, 52), "fine", 0.4, 0.1),  # spleen
    Tissue((232, 168, 62), (204, 120, 40), "lobule", 1.0, 0.4),  # fat
    Tissue((222, 140, 66), (196, 96, 46), "lobule", 0.9, 0.6),  # fatty mesentery
    Tissue((220, 188, 140), (196, 150, 100), "lobule", 0.8, 0.3),  # pale fat
    Tissue((168, 52, 46), (118, 26, 30), "strand", 1.0, 0.2),  # muscle
    Tissue((120, 62, 40), (64, 28, 22), "lobule", 1.4, 0.0),  # dissected bed
    Tissue((144, 146, 136), (116, 112, 108), "fine", 0.3, 0.6),  # gall bladder
)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 1) -> Field:
    """Smooth noise `(H, W)` float32 of about unit variance; `cell` is its largest feature in pixels."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += _grid_noise(rng, shape, cell / 2**octave, cell / 2**octave) * 0.55**octave
    return total


def _grid_noise(rng: np.random.Generator, shape: tuple[int, int], cell_y: float, cell_x: float) -> Field:
    rows, columns = (
        max(2, round(side / max(cell, 1.0)) + 2) for side, cell in zip(shape, (cell_y, cell_x), strict=True)
    )
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _lobules(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Field:
    """Rounded bumps beside each other, as in fat: one dome around every one of many scattered points."""
    points = np.full(shape, 255, np.uint8)
    count = max(4, round(shape[0] * shape[1] / cell**2))
    points[rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)] = 0
    distance = cv2.distanceTransform(points, cv2.DIST_L2, 3)
    return np.asarray(1.0 - np.minimum(distance / cell, 1.0) ** 2, np.float32)


def _strands(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Field:
    """Fibres along one direction."""
    diagonal = math.ceil(math.hypot(*shape)) + 2
    lines = _grid_noise(rng, (diagonal, diagonal), cell * 0.35, cell * 6)
    turn = cv2.getRotationMatrix2D((diagonal / 2, diagonal / 2), float(rng.uniform(0, 180)), 1.0)
    turned = cv2.warpAffine(lines, turn, (diagonal, diagonal), borderMode=cv2.BORDER_REFLECT)
    top, left = (diagonal - shape[0]) // 2, (diagonal - shape[1]) // 2
    return np.asarray(turned[top : top + shape[0], left : left + shape[1]], np.float32)


class TissueCanvas:
    """Paints one background; `image_hwc` is uint8 RGB of the size asked for. Random: everything."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        shrink = max(1.0, math.sqrt(height * width / _WORKING_PIXELS))
        self._rng = rng
        self._full = (height, width)
        self._shape = (round(height / shrink), round(width / shrink))
        self._size = float(min(self._shape))
        self._grid_y, self._grid_x = (
            axis.astype(np.float32) for axis in np.mgrid[0 : self._shape[0], 0 : self._shape[1]]
        )
        for grid in (self._grid_y, self._grid_x):
            grid += smooth_noise(rng, self._shape, self._size * 0.45, 3) * np.float32(self._size * 0.05)
        self._height = smooth_noise(rng, self._shape, self._size * 0.5, 2) * np.float32(self._size * 0.04)
        self._cast = np.array(TISSUES[int(rng.integers(len(TISSUES) - 1))].colour, np.float32)
        self._colour = np.empty((*self._shape, 3), np.float32)
        self._vessels = np.zeros(self._shape, np.float32)
        self._bumps = {
            "fine": smooth_noise(rng, self._shape, self._size * 0.03, 2) * np.float32(0.2),
            "lobule": _lobules(rng, self._shape, self._size * float(rng.uniform(0.04, 0.12)))
            * np.float32(2.2),
            "strand": _strands(rng, self._shape, self._size * 0.05) * np.float32(0.3),
        }
        self._relief = smooth_noise(rng, self._shape, self._size * 0.16, 2) * np.float32(self._size * 0.012)
        self._mottle = np.clip(smooth_noise(rng, self._shape, self._size * 0.2, 4) * 0.3 + 0.4, 0, 1)
        self._lay_organs()
        self.image_hwc = self._shade()

    def _lay_organs(self) -> None:
        rng = self._rng
        kinds = rng.choice(len(TISSUES), size=int(rng.integers(3, 6)), replace=False)
        everywhere = np.ones(self._shape, bool)
        self._lay(everywhere, self._height - np.float32(0.25 * self._size), kinds[0])
        for _ in range(int(rng.integers(4, 10))):
            shape = (self._dome, self._tube, self._sheet)[int(rng.choice(3, p=(0.45, 0.25, 0.3)))]
            inside, height = shape()
            self._lay(inside & (height > self._height), height, int(rng.choice(kinds)))

    def _lay(self, where: NDArray[np.bool_], height: Field, kind: int) -> None:
        tissue = TISSUES[kind]
        mottle = self._mottle[where][:, None]
        tint = self._rng.normal(1.0, 0.03, 3) * self._rng.uniform(0.85, 1.1)
        near, far = (
            (0.75 * np.array(colour, np.float32) + 0.25 * self._cast) * np.asarray(tint, np.float32)
            for colour in (tissue.colour, tissue.mottle)
        )
        self._colour[where] = near + (far - near) * mottle
        bumps = self._bumps[tissue.bump] * np.float32(tissue.roughness * self._size * 0.012)
        self._height[where] = (height + bumps + self._relief)[where]
        self._vessels[where] = tissue.vessels

    def _anchor(self) -> tuple[float, float, float, float]:
        """A place and a direction: x, y in pixels, cosine and sine."""
        rng, turn = self._rng, float(self._rng.uniform(0, 2 * math.pi))
        x, y = float(rng.uniform(0, self._shape[1])), float(rng.uniform(0, self._shape[0]))
        return x, y, math.cos(turn), math.sin(turn)

    def _dome(self) -> tuple[NDArray[np.bool_], Field]:
        x, y, cos, sin = self._anchor()
        long = self._size * float(self._rng.uniform(0.15, 0.5))
        wide = long * float(self._rng.uniform(0.45, 1.0))
        along = ((self._grid_x - x) * cos + (self._grid_y - y) * sin) / long
        across = ((self._grid_y - y) * cos - (self._grid_x - x) * sin) / wide
        distance = along**2 + across**2
        lift = self._size * float(self._rng.uniform(-0.2, 0.05))
        return distance < 1, np.sqrt(np.maximum(1 - distance, 0)) * np.float32(wide * 0.6) + np.float32(lift)

    def _tube(self) -> tuple[NDArray[np.bool_], Field]:
        x, y, cos, sin = self._anchor()
        radius = self._size * float(self._rng.uniform(0.06, 0.2))
        along = (self._grid_x - x) * cos + (self._grid_y - y) * sin
        across = (self._grid_y - y) * cos - (self._grid_x - x) * sin
        bend = self._size * float(self._rng.uniform(0.05, 0.25))
        across = across - np.float32(bend) * np.sin(
            along / np.float32(self._size * self._rng.uniform(0.15, 0.4))
        )
        folds = 1 + np.float32(0.1) * np.sin(along / np.float32(radius * self._rng.uniform(0.3, 0.8)))
        distance = (across / (np.float32(radius) * folds)) ** 2
        lift = self._size * float(self._rng.uniform(-0.15, 0.05))
        return distance < 1, np.sqrt(np.maximum(1 - distance, 0)) * np.float32(radius) * folds + np.float32(
            lift
        )

    def _sheet(self) -> tuple[NDArray[np.bool_], Field]:
        x, y, cos, sin = self._anchor()
        x, y = (x + self._shape[1]) / 3, (y + self._shape[0]) / 3
        depth = (self._grid_x - x) * cos + (self._grid_y - y) * sin
        folds = smooth_noise(self._rng, self._shape, self._size * 0.15, 2) * np.float32(self._size * 0.012)
        rise = np.float32(self._size * 0.12) * np.tanh(depth / np.float32(self._size * 0.1))
        lift = self._size * float(self._rng.uniform(-0.2, 0.0))
        return depth > 0, rise + folds + np.float32(lift)

    def _shade(self) -> Image:
        rng, size = self._rng, self._size
        height = cv2.GaussianBlur(self._height, (0, 0), max(0.8, size * 0.0055))
        slope_x, slope_y = (
            np.asarray(cv2.Sobel(height, cv2.CV_32F, dx, 1 - dx, scale=0.125), np.float32) for dx in (1, 0)
        )
        facing = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
        light = facing * (1 - _LIGHT_X * slope_x - _LIGHT_Y * slope_y)
        # A quarter of the size is enough for what is blurred over a tenth of the picture.
        small = cv2.resize(height, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        around = cv2.resize(cv2.GaussianBlur(small, (0, 0), size * 0.015), self._shape[::-1])
        crease = np.clip((height - around) / np.float32(size * 0.05), -1, 0.3)
        depth = np.clip(1 + height / np.float32(size * float(rng.uniform(0.35, 0.8))), 0.12, 1.25)
        shade = np.clip(light, 0.28, 1.2) * (1 + 0.4 * crease) * depth
        # Tissue is translucent: colours and shadows bleed across an edge.
        colour = cv2.GaussianBlur(self._colour * shade[..., None], (0, 0), max(0.6, size * 0.003))
        self._bleed(colour)
        canvas = cv2.resize(
            np.clip(colour, 0, 255).astype(np.uint8), self._full[::-1], interpolation=cv2.INTER_CUBIC
        )
        self._draw_vessels(canvas)
        self._add_detail(canvas)
        self._add_highlights(canvas, slope_x, slope_y, shade)
        return np.ascontiguousarray(canvas)

    def _bleed(self, colour: NDArray[np.float32]) -> None:
        """Blood on some of the surface, in about a third of the scenes."""
        if self._rng.random() < 0.65:
            return
        noise = smooth_noise(self._rng, self._shape, self._size * float(self._rng.uniform(0.15, 0.5)), 4)
        above = (noise - self._rng.uniform(0.5, 1.6)) * float(self._rng.uniform(0.5, 1.6))
        amount = np.clip(above, 0, 0.8)[..., None]
        blood = np.array((96, 10, 12), np.float32) * (colour.mean(axis=2, keepdims=True) / 110)
        colour += amount * (blood - colour)

    def _draw_vessels(self, canvas: Image) -> None:
        """Branching lines, darker and redder than what they cross, only where the tissue shows them."""
        strength = np.zeros(self._full, np.uint8)
        for _ in range(int(self._rng.integers(3, 14))):
            x, y = self._rng.uniform(0, self._full[1]), self._rng.uniform(0, self._full[0])
            width = min(self._full) * float(self._rng.uniform(0.002, 0.009))
            self._grow_vessel(strength, float(x), float(y), float(self._rng.uniform(0, 6.28)), width, 0)
        soft = cv2.GaussianBlur(strength, (0, 0), max(0.7, min(self._full) * 0.0015))
        shown = cv2.resize((self._vessels * 255).astype(np.uint8), self._full[::-1])
        soft = cv2.multiply(soft, shown, scale=1 / 255)
        remaining = [cv2.addWeighted(soft, -share, soft, 0, 255) for share in (0.22, 0.62, 0.5)]
        cv2.multiply(canvas, cv2.merge(remaining), dst=canvas, scale=1 / 255)

    def _grow_vessel(self, layer: Image, x: float, y: float, turn: float, width: float, depth: int) -> None:
        rng, step = self._rng, min(self._full) * 0.03
        turns = turn + np.cumsum(rng.normal(0, 0.3, int(rng.integers(8, 24))))
        points = np.stack([x + np.cumsum(np.cos(turns)) * step, y + np.cumsum(np.sin(turns)) * step], axis=1)
        shade = int(rng.uniform(120, 230) * 0.85**depth)
        cv2.polylines(
            layer,
            [np.round(points * 16).astype(np.int32)],
            False,
            shade,
            max(1, round(width)),
            cv2.LINE_AA,
            4,
        )
        if depth < 2:
            for at in rng.integers(2, len(points), 3):
                side = float(rng.choice((-1, 1)) * rng.uniform(0.4, 1.0))
                x, y = (float(value) for value in points[at])
                self._grow_vessel(layer, x, y, float(turns[at]) + side, width * 0.6, depth + 1)

    def _add_detail(self, canvas: Image) -> None:
        grain = smooth_noise(self._rng, self._full, 3.0 + min(self._full) * 0.004) * np.float32(4.5) + 128
        detail = cv2.cvtColor(np.clip(grain, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)
        cv2.multiply(canvas, detail, dst=canvas, scale=1 / 128)

    def _add_highlights(self, canvas: Image, slope_x: Field, slope_y: Field, shade: Field) -> None:
        """Reflections of the endoscope's lamp where the wet surface faces it."""
        rng = self._rng
        ripple = self._size * float(rng.uniform(0.012, 0.04))
        spread = float(rng.uniform(0.04, 0.14))
        ripples = [smooth_noise(rng, self._shape, ripple * 2, 2) * np.float32(0.16) for _ in range(2)]
        off = (slope_x + ripples[0] + np.float32(rng.uniform(-0.3, 0.3))) ** 2
        off += (slope_y + ripples[1] + np.float32(0.25)) ** 2
        wet = np.clip(
            smooth_noise(rng, self._shape, self._size * 0.25, 2) * 0.5 + rng.uniform(0.1, 0.7), 0, 1
        )
        shine = np.exp(-off / np.float32(spread * spread * 2)) * wet * np.clip(shade * 1.4, 0, 1)
        shine = cv2.resize(shine, self._full[::-1], interpolation=cv2.INTER_LINEAR)
        glare = np.clip((shine - 0.35) * 520, 0, 245).astype(np.uint8)
        glare = cv2.blur(glare, (3, 3))
        cv2.add(canvas, cv2.cvtColor(glare, cv2.COLOR_GRAY2RGB), dst=canvas)
