"""The instruments of the synthetic scene: how they are made, move, and are drawn with their mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from service.contract.geometry import Image, Mask
from service.streams.synthetic_materials import Material, draw_material, paint_metal, paint_shaft

Points = NDArray[np.float64]

_SUBPIXEL_BITS = 4
_SHAFT_PIECES = 6


@dataclass(frozen=True)
class Part:
    """A flat piece of an instrument. Lengths are in shaft radii, x runs from the tip towards the handle.

    `outline` and `holes` are corner points in the part's own frame; the frame turns about `pivot` by `swing`
    times the jaw's opening, and then with the wrist about the end of the shaft when `on_wrist`.
    """

    outline: Points
    texture: Image
    holes: tuple[Points, ...] = ()
    pivot: tuple[float, float] = (0.0, 0.0)
    swing: float = 0.0
    on_wrist: bool = True


@dataclass(frozen=True)
class Pose:
    """Where an instrument is: the end of its shaft and its trocar in pixels, angles in radians."""

    end_xy: tuple[float, float]
    trocar_xy: tuple[float, float]
    radius: float
    opening: float
    bend: float


def _mirror(points: Points) -> Points:
    return np.asarray(points * np.array((1.0, -1.0)))


def _turn(points: Points, angle: float) -> Points:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.asarray(points @ np.array(((cos, sin), (-sin, cos))))


def _points(*pairs: tuple[float, float]) -> Points:
    return np.array(pairs, np.float64)


def _jaw_pair(
    rng: np.random.Generator,
    metal: Image,
    outline: Points,
    holes: tuple[Points, ...],
    pivot: tuple[float, float],
) -> list[Part]:
    lower = Part(_mirror(outline), metal[::-1].copy(), tuple(_mirror(hole) for hole in holes), pivot, -1.0)
    return [lower, Part(outline, metal, holes, pivot, 1.0 if rng.random() < 0.75 else 0.0)]


def _clevis(metal: Image, length: float, width: float) -> Part:
    outline = _points(
        (1.0, 1.0),
        (-0.4 * length, 0.9),
        (-length, width),
        (-length, -width),
        (-0.4 * length, -0.9),
        (1.0, -1.0),
    )
    return Part(outline, metal, on_wrist=False)


def _grasper(rng: np.random.Generator, metal: Image) -> list[Part]:
    length, thick = float(rng.uniform(2.5, 6.5)), float(rng.uniform(0.35, 0.8))
    curve = float(rng.uniform(-0.3, 0.35))
    outline = _points(
        (0.5, 0.0), (0.4, 0.6), (-0.5, thick), (-0.6 * length, thick + curve * 0.5),
        (-0.93 * length, thick * 0.75 + curve), (-length, thick * 0.4 + curve), (-0.97 * length, curve),
        (-0.6 * length, 0.04 + curve * 0.5), (-0.3, 0.04),
    )  # fmt: skip
    holes: tuple[Points, ...] = ()
    if rng.random() < 0.45:
        low, high = thick * 0.32, thick * 0.8
        near, far = -0.3 * length, -0.8 * length
        holes = (
            _points((near, low), (near, high), (far, high * 0.9 + curve * 0.7), (far, low + curve * 0.7)),
        )
    return [*_jaw_pair(rng, metal, outline, holes, (-0.8, 0.0)), _clevis(metal, 1.2, 0.6)]


def _scissors(rng: np.random.Generator, metal: Image) -> list[Part]:
    length, curve = float(rng.uniform(2.5, 4.5)), float(rng.uniform(0.0, 0.8))
    outline = _points(
        (0.4, -0.2), (0.4, 0.5), (-0.4 * length, 0.5 + curve * 0.2), (-0.8 * length, 0.3 + curve * 0.7),
        (-length, curve), (-0.6 * length, -0.05 + curve * 0.3),
    )  # fmt: skip
    return [*_jaw_pair(rng, metal, outline, (), (-0.6, 0.0)), _clevis(metal, 1.0, 0.55)]


def _hook(rng: np.random.Generator, metal: Image) -> list[Part]:
    length, wire = float(rng.uniform(2.0, 5.0)), float(rng.uniform(0.15, 0.3))
    reach = float(rng.uniform(0.8, 1.8))
    outline = _points(
        (0.5, wire), (-length, wire), (-length - wire, reach), (-length - 3 * wire, reach),
        (-length - 2.5 * wire, -wire * 0.5), (-length - wire, -wire), (0.5, -wire),
    )  # fmt: skip
    collar = Part(_points((1, 1), (-0.6, 0.75), (-0.8, 0), (-0.6, -0.75), (1, -1)), metal, on_wrist=False)
    return [Part(outline, metal), collar]


def _stapler(rng: np.random.Generator, metal: Image) -> list[Part]:
    length, nose = float(rng.uniform(5.0, 9.0)), float(rng.uniform(0.3, 0.8))
    outline = _points(
        (0.8, 0.05),
        (0.8, 1.0),
        (-0.85 * length, 0.95),
        (-0.97 * length, nose),
        (-length, 0.25),
        (-0.95 * length, 0.05),
    )
    return [*_jaw_pair(rng, metal, outline, (), (0.6, 0.0)), _clevis(metal, 0.2, 0.95)]


def _tube(rng: np.random.Generator, metal: Image) -> list[Part]:
    """A suction tube or a blunt probe: a rounded end, sometimes narrower than the shaft."""
    width, length = float(rng.uniform(0.5, 1.0)), float(rng.uniform(0.5, 5.0))
    turns = np.linspace(math.pi / 2, 3 * math.pi / 2, 9)
    end = np.stack((np.cos(turns) * 0.5 - length, np.sin(turns) * width), axis=1)
    return [Part(np.concatenate((_points((1.0, 1.0)), end, _points((1.0, -1.0)))), metal, on_wrist=False)]


def _wristed(rng: np.random.Generator, metal: Image) -> list[Part]:
    """A robot's instrument: a link that bends at the end of the shaft, and jaws at the end of the link."""
    link, width = float(rng.uniform(1.6, 3.0)), float(rng.uniform(0.55, 0.8))
    body = _points(
        (0.5, width), (-link, width * 0.9), (-link - 0.4, 0.0), (-link, -width * 0.9), (0.5, -width)
    )
    length = float(rng.uniform(2.0, 4.5))
    jaw = _points(
        (0.4, 0.0), (0.3, 0.5), (-0.6 * length, 0.42), (-length, 0.25), (-length, 0.02), (-0.3, 0.03)
    )
    hole = (
        _points((-0.3 * length, 0.14), (-0.3 * length, 0.32), (-0.75 * length, 0.26), (-0.75 * length, 0.12)),
    )
    jaws = _jaw_pair(rng, metal, jaw, hole if rng.random() < 0.4 else (), (-link, 0.0))
    return [*jaws, Part(body, metal), _clevis(metal, 0.5, 0.75)]


_TIPS = (_grasper, _scissors, _hook, _stapler, _tube, _wristed)
_TIP_SHARES = (0.4, 0.12, 0.1, 0.12, 0.12, 0.14)


class Instrument:
    """One instrument. Random: kind of tip, thickness, taper, materials, markings, trocar, path and speed.

    `centre` and `extent` are the middle and the half axes, in pixels, of what the endoscope shows: the
    trocar lies outside it and the tip moves inside it.
    """

    def __init__(
        self, rng: np.random.Generator, centre: tuple[float, float], extent: tuple[float, float]
    ) -> None:
        size = 2 * min(extent)
        self._radius = size * math.exp(float(rng.uniform(math.log(0.016), math.log(0.11))))
        self._taper = float(rng.uniform(0.0, 0.9))
        material = draw_material(rng)
        metal = paint_metal(rng, draw_material(rng, metallic=rng.random() < 0.8))
        self._tip = _TIPS[int(rng.choice(len(_TIPS), p=_TIP_SHARES))](rng, metal)
        self._shaft = self._paint_shaft(rng, material, size)
        self._lay_path(rng, centre, extent)
        self._opening = float(rng.uniform(0.05, 0.55))
        self._bend = float(rng.uniform(-0.9, 0.9))
        self._rates = rng.uniform(0.15, 0.9, 5)
        self._phases = rng.uniform(0, 2 * math.pi, 5)
        self._retreat = float(rng.uniform(0.6, 1.6))

    def _paint_shaft(self, rng: np.random.Generator, material: Material, size: float) -> Image:
        across = max(16, min(160, round(self._radius * 2)))
        return paint_shaft(rng, material, across, max(64, min(1400, round(size * 1.2))))

    def _lay_path(
        self, rng: np.random.Generator, centre: tuple[float, float], extent: tuple[float, float]
    ) -> None:
        turn, outside = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(1.25, 2.0))
        side = (math.cos(turn), math.sin(turn))
        outside /= max(abs(side[0]), abs(side[1]))
        self._trocar = tuple(c + outside * e * u for c, e, u in zip(centre, extent, side, strict=True))
        self._home = tuple(c + e * float(rng.uniform(-0.5, 0.5)) for c, e in zip(centre, extent, strict=True))
        self._sway = tuple(e * float(rng.uniform(0.08, 0.35)) for e in extent)

    def pose(self, time_s: float) -> Pose:
        """Where the instrument is at `time_s`; smooth in time. It sometimes leaves the view and returns."""
        wave = np.sin(time_s * self._rates + self._phases)
        target = [h + s * float(w) for h, s, w in zip(self._home, self._sway, wave, strict=False)]
        depth = min(1.0, 1.0 + 0.5 * (self._retreat + float(wave[2])))
        end = [c + (x - c) * depth for c, x in zip(self._trocar, target, strict=True)]
        return Pose(
            end_xy=(end[0], end[1]),
            trocar_xy=(self._trocar[0], self._trocar[1]),
            radius=self._radius,
            opening=self._opening * (0.5 + 0.5 * float(wave[3])),
            bend=self._bend * float(wave[4]),
        )

    def draw(self, pose: Pose, image_hwc: Image, mask_hw: Mask) -> None:
        """Draw on the picture, and set exactly the pixels that were drawn in the mask to 1. Both in place."""
        self._draw_shaft(pose, image_hwc, mask_hw)
        for part in self._tip:
            outline, *holes = (place_tip(points, part, pose) for points in (part.outline, *part.holes))
            low, high = part.outline.min(axis=0), part.outline.max(axis=0)
            corners = np.array(((low[0], low[1]), (high[0], low[1]), (low[0], high[1]), (high[0], high[1])))
            _paint(part.texture, place_tip(corners, part, pose), [outline, *holes], image_hwc, mask_hw)

    def shaft_corners(self, pose: Pose) -> Points:
        """The shaft's four corners in pixels: end left, trocar left, end right, trocar right."""
        length = math.dist(pose.end_xy, pose.trocar_xy) / pose.radius
        wide = 1.0 + self._taper
        return place(np.array(((0, -1), (length, -wide), (0, 1), (length, wide))), pose)

    def _draw_shaft(self, pose: Pose, image_hwc: Image, mask_hw: Mask) -> None:
        """In pieces, so that a diagonal shaft does not cost its whole bounding box."""
        corners = self.shaft_corners(pose)
        cuts = np.linspace(0, 1, _SHAFT_PIECES + 1)[:, None]
        left = corners[0] + (corners[1] - corners[0]) * cuts
        right = corners[2] + (corners[3] - corners[2]) * cuts
        for index in range(_SHAFT_PIECES):
            piece = np.stack((left[index], left[index + 1], right[index + 1], right[index]))
            _paint(self._shaft, corners, [piece], image_hwc, mask_hw)

    def outlines(self, pose: Pose) -> list[tuple[Points, list[Points]]]:
        """The outline and the holes of every part in pixels, in the order in which they are drawn."""
        shaft = self.shaft_corners(pose)[[0, 1, 3, 2]]
        tip = [(place_tip(p.outline, p, pose), [place_tip(h, p, pose) for h in p.holes]) for p in self._tip]
        return [(shaft, []), *tip]


def place(points: Points, pose: Pose) -> Points:
    """From shaft radii along the shaft to pixels."""
    x, y = pose.trocar_xy[0] - pose.end_xy[0], pose.trocar_xy[1] - pose.end_xy[1]
    return np.asarray(_turn(points * pose.radius, math.atan2(y, x)) + np.array(pose.end_xy))


def place_tip(points: Points, part: Part, pose: Pose) -> Points:
    """From a part's own frame to pixels."""
    placed = _turn(points, -part.swing * pose.opening) + np.array(part.pivot)
    return place(_turn(placed, pose.bend) if part.on_wrist else placed, pose)


def _paint(texture: Image, corners: Points, outlines: list[Points], image_hwc: Image, mask_hw: Mask) -> None:
    """Stretch `texture` over four corners (row by row) and keep what is in the first outline only."""
    low = np.floor(outlines[0].min(axis=0)).astype(int) - 1
    high = np.ceil(outlines[0].max(axis=0)).astype(int) + 2
    left, top = max(0, int(low[0])), max(0, int(low[1]))
    right, bottom = min(mask_hw.shape[1], int(high[0])), min(mask_hw.shape[0], int(high[1]))
    if right <= left or bottom <= top:
        return
    origin = np.array((left, top))
    cut = np.zeros((bottom - top, right - left), np.uint8)
    scale = 1 << _SUBPIXEL_BITS
    shapes = [np.round((outline - origin) * scale).astype(np.int32) for outline in outlines]
    cv2.fillPoly(cut, shapes, 1, cv2.LINE_8, _SUBPIXEL_BITS)
    height, width = texture.shape[:2]
    source = np.array(((0, 0), (width, 0), (0, height), (width, height)), np.float32)
    mapping = cv2.getPerspectiveTransform(source, (corners - origin).astype(np.float32))
    # Nearest pixels are enough for textures of about the screen's resolution; the lens blurs them later.
    layer = cv2.warpPerspective(
        texture, mapping, cut.shape[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
    )
    cv2.copyTo(layer, cut, image_hwc[top:bottom, left:right])
    visible = mask_hw[top:bottom, left:right]
    cv2.bitwise_or(visible, cut, dst=visible)
