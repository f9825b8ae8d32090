"""What the synthetic instruments are made of: shaded cylinders and plates, as small textures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from service.contract.geometry import Image

_LETTERS = np.array(list("ABCDEFGHIKLMNOPRSTUVXYZ0123456789 -+"))


@dataclass(frozen=True)
class Material:
    """`colour` is RGB 0 to 255 under full light; `gloss` and `mirror` are 0 to 1."""

    colour: tuple[float, float, float]
    gloss: float
    mirror: float


def draw_material(rng: np.random.Generator, metallic: bool | None = None) -> Material:
    """Black, grey, white, tinted plastic or bare metal."""
    if metallic is None:
        metallic = bool(rng.random() < 0.3)
    if metallic:
        level, mirror = rng.uniform(90, 210), rng.uniform(0.5, 1.0)
    else:
        low, high = ((18, 45), (50, 90), (90, 150), (190, 240))[
            int(rng.choice(4, p=(0.45, 0.25, 0.18, 0.12)))
        ]
        level, mirror = rng.uniform(low, high), rng.uniform(0.0, 0.3)
    tint = np.clip(level + rng.normal(0, 4, 3) + rng.choice((0.0, 5.0)) * np.array((-1.0, 0.0, 0.8)), 8, 250)
    return Material((tint[0], tint[1], tint[2]), float(rng.uniform(0.15, 1.0)), float(mirror))


def _ramp(rng: np.random.Generator, material: Material, across: int) -> NDArray[np.float32]:
    """Colours `(across, 3)` over a cylinder that the endoscope's lamp lights from its own side."""
    place = np.linspace(-1, 1, across, dtype=np.float32)
    lamp = float(rng.uniform(-0.5, 0.5))
    facing = np.sqrt(np.maximum(1 - place**2, 0))
    body = 0.22 + 0.85 * facing * (1 - 0.35 * np.abs(place - lamp))
    body *= 1 + material.mirror * 0.55 * np.sin(place * float(rng.uniform(4, 9)) + float(rng.uniform(0, 6)))
    streak = np.exp(-(((place - lamp) / float(rng.uniform(0.05, 0.22))) ** 2)) * material.gloss
    tissue = np.exp(-(((np.abs(place) - 0.82) / 0.14) ** 2)) * (0.12 + 0.3 * material.mirror)
    colour = np.array(material.colour, np.float32) * body[:, None] + 200 * streak[:, None]
    return np.asarray(colour + tissue[:, None] * np.array((110, 55, 45), np.float32), np.float32)


def _length_noise(rng: np.random.Generator, along: int, knots: int) -> NDArray[np.float32]:
    grid = rng.standard_normal((1, knots), dtype=np.float32)
    return np.asarray(cv2.resize(grid, (along, 1), interpolation=cv2.INTER_CUBIC), np.float32)


def paint_shaft(rng: np.random.Generator, material: Material, across: int, along: int) -> Image:
    """A shaft `(across, along, 3)` uint8 RGB from its end (left) to its trocar (right)."""
    ramp = _ramp(rng, material, across)
    light = 1 + 0.12 * _length_noise(rng, along, 6) + np.linspace(0.1, float(rng.uniform(-0.35, 0.5)), along)
    picture = ramp[:, None, :] * np.clip(light, 0.35, 1.8).reshape(1, along, 1).astype(np.float32)
    _mark(rng, picture, across, along)
    _smear(rng, picture)
    picture += rng.standard_normal((across, along, 1), dtype=np.float32) * np.float32(2.5)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _mark(rng: np.random.Generator, picture: NDArray[np.float32], across: int, along: int) -> None:
    """Rings, an insulated or bare front, printed letters."""
    for _ in range(int(rng.integers(0, 4))):
        start = int(rng.uniform(0, 0.6) * along)
        stop = start + max(2, int(along * rng.choice((0.004, 0.01, 0.04))))
        picture[:, start:stop] = picture[:, start:stop] * np.float32(rng.choice((0.3, 0.6, 1.5))) + 4
    if rng.random() < 0.35:
        front = int(rng.uniform(0.03, 0.25) * along)
        bare = _ramp(rng, draw_material(rng), across)
        picture[:, :front] = bare[:, None, :]
        picture[:, max(0, front - 2) : front] *= np.float32(0.4)
    if rng.random() < 0.4 and across >= 20:
        _print_letters(rng, picture, across, along)


def _print_letters(rng: np.random.Generator, picture: NDArray[np.float32], across: int, along: int) -> None:
    text = "".join(rng.choice(_LETTERS, int(rng.integers(3, 12))))
    ink = np.zeros((across, along), np.uint8)
    scale = across / 55 * float(rng.uniform(0.5, 1.1))
    origin = (int(rng.uniform(0.02, 0.4) * along), int(across * rng.uniform(0.5, 0.75)))
    cv2.putText(
        ink, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, max(1, round(across / 22)), cv2.LINE_AA
    )
    if rng.random() < 0.5:
        ink = np.roll(ink[::-1, ::-1], -int(along * 0.5), axis=1)
    share = (ink.astype(np.float32) / 255)[..., None]
    is_dark = float(picture.mean()) < 110
    level = np.float32(200.0 if is_dark else 25.0)
    picture += share * (level - picture) * np.float32(0.85)


def _smear(rng: np.random.Generator, picture: NDArray[np.float32]) -> None:
    """Blood or char on some instruments."""
    if rng.random() < 0.55:
        return
    height, width = picture.shape[:2]
    grid = rng.standard_normal((4, max(4, width // max(8, height // 3))), dtype=np.float32)
    noise = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    share = np.clip((noise - float(rng.uniform(0.8, 1.8))) * 2, 0, 0.7)[..., None]
    stain = np.array((95, 18, 16) if rng.random() < 0.75 else (28, 18, 14), np.float32)
    picture += share * (stain - picture)


def paint_metal(rng: np.random.Generator, material: Material) -> Image:
    """A plate `(64, 160, 3)` uint8 RGB for jaws and wrists: polished bands, a bright edge, fine grooves."""
    across, along = 64, 160
    picture = np.repeat(_ramp(rng, material, across)[:, None, :], along, axis=1)
    shine = 1 + 0.4 * _length_noise(rng, along, 9)
    picture *= np.clip(shine, 0.3, 2.0).reshape(1, along, 1)
    if rng.random() < 0.5:
        period = int(rng.integers(5, 10))
        picture[: across // 3, ::period] *= np.float32(0.45)
    glints = rng.standard_normal((6, 12), dtype=np.float32)
    glints = np.clip(cv2.resize(glints, (along, across), interpolation=cv2.INTER_CUBIC) - 1.3, 0, 1)
    picture += glints[..., None] * np.float32(220 * material.gloss)
    _smear(rng, picture)
    return np.clip(picture, 0, 255).astype(np.uint8)
