"""Augmentation of a picture and its mask: one geometric warp straight on to the canvas, then photometric changes.

All functions take the generator that decides them, so a batch is a pure function of (seed, step). Pictures are uint8
RGB `(H, W, 3)`, masks uint8 class ids `(H, W)`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from service.contract.geometry import Image, Mask
from training.config import AugmentConfig

Generator = np.random.Generator


def warp_to_canvas(
    image_hwc: Image,
    mask_hw: Mask,
    canvas: tuple[int, int],
    aspect: tuple[float, ...],
    config: AugmentConfig,
    rng: Generator,
) -> tuple[Image, Mask]:
    """Restore the aspect, then scale, rotate, flip and move the picture on a canvas of (height, width), in one warp.

    Scale 1 is the service's letterbox fit; what falls outside the picture is black background.
    """
    return warp(image_hwc, mask_hw, canvas, draw_warp(mask_hw.shape[:2], canvas, aspect, config, rng))


def draw_warp(
    size: tuple[int, ...],
    canvas: tuple[int, int],
    aspect: tuple[float, ...],
    config: AugmentConfig,
    rng: Generator,
) -> np.ndarray:
    """The affine matrix, float64 `(2, 3)`, of `warp_to_canvas` from a picture's pixels (x, y) to the canvas's.

    `size` and `canvas` are (height, width).
    """
    height, width = size
    canvas_height, canvas_width = canvas
    true_aspect = width / height if not aspect else rng.uniform(*aspect)
    true_aspect *= math.exp(rng.uniform(-1, 1) * config.aspect_jitter)
    fitted_height = min(canvas_height, canvas_width / true_aspect)
    scale = math.exp(rng.uniform(*(math.log(limit) for limit in config.scale)))
    angle = math.radians(rng.uniform(-1, 1) * config.rotation_degrees)
    stretch_x = fitted_height * true_aspect / width * scale * (-1 if rng.random() < config.flip else 1)
    stretch_y = fitted_height / height * scale * (-1 if rng.random() < config.flip_vertical else 1)
    # the picture's centre may leave the canvas's by as much as keeps most of a large picture in view
    reach_x = 0.5 * abs(fitted_height * true_aspect * scale - canvas_width) + 0.1 * canvas_width
    reach_y = 0.5 * abs(fitted_height * scale - canvas_height) + 0.1 * canvas_height
    centre = (
        canvas_width / 2 + rng.uniform(-1, 1) * reach_x,
        canvas_height / 2 + rng.uniform(-1, 1) * reach_y,
    )
    cosine, sine = math.cos(angle), math.sin(angle)
    linear = np.array([[cosine * stretch_x, -sine * stretch_y], [sine * stretch_x, cosine * stretch_y]])
    offset = np.array(centre) - linear @ np.array([width / 2, height / 2])
    return np.hstack([linear, offset[:, None]])


def warp(image_hwc: Image, mask_hw: Mask, canvas: tuple[int, int], matrix: np.ndarray) -> tuple[Image, Mask]:
    """Picture and mask on a canvas of (height, width), by a matrix of `draw_warp`."""
    size = canvas[::-1]
    shrink = np.linalg.norm(matrix[:, :2], axis=0).max()
    source = cv2.blur(image_hwc, (3, 3)) if shrink < 0.45 else image_hwc  # bilinear alone would alias
    warped = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR)
    warped_mask = cv2.warpAffine(mask_hw, matrix, size, flags=cv2.INTER_NEAREST)
    return warped, warped_mask


def find_origin(matrix: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Where a warped pixel (x, y) lay in its picture of (height, width): float32 `(2, 3)`, the inverse of `matrix`.

    Places are shares of the picture's width and height, 0 to 1 inside it.
    """
    to_share = np.diag(1 / np.array([size[1], size[0]], np.float64))
    inverse = cv2.invertAffineTransform(matrix)
    inverse[:, 2] += 0.5  # a pixel's middle
    return (to_share @ inverse).astype(np.float32)


def paste_instruments(
    image_hwc: Image,
    mask_hw: Mask,
    other_hwc: Image,
    other_mask_hw: Mask,
    config: AugmentConfig,
    rng: Generator,
) -> tuple[Image, Mask]:
    """Lay another picture's foreground over this one, its edge softened by a pixel; masks unite."""
    if config.paste_colour and rng.random() < config.paste_colour:
        other_hwc = _change_colour(other_hwc, 0.0 if config.grey else 1.0, rng)
    weight = cv2.GaussianBlur((other_mask_hw > 0).astype(np.float32), (3, 3), 0)[:, :, None]
    mixed = image_hwc * (1 - weight) + other_hwc * weight
    return mixed.astype(np.uint8), np.where(other_mask_hw > 0, other_mask_hw, mask_hw)


def change_appearance(
    image_hwc: Image, mask_hw: Mask, config: AugmentConfig, rng: Generator
) -> tuple[Image, Mask]:
    """Colour, shade, smoke, blur, noise, compression, a round view, boxes and a grid, each with its own probability.

    The round view, the boxes and the grid hide what lies under them, in the mask as well. Of colour, smoke and noise a
    grey picture takes only what is alike in all channels.
    """
    tint = 0.0 if config.grey else 1.0
    if rng.random() < config.colour:
        image_hwc = _change_colour(image_hwc, tint, rng)
    if rng.random() < config.grayscale:
        image_hwc = cv2.cvtColor(cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < config.shade:
        image_hwc = _blend(
            image_hwc, np.zeros(3), _smooth_field(image_hwc.shape, rng) * rng.uniform(0.3, 0.9)
        )
    if rng.random() < config.smoke:
        colour = rng.uniform(120, 235) + tint * rng.uniform(-20, 20, 3)
        image_hwc = _blend(image_hwc, colour, _smooth_field(image_hwc.shape, rng) * rng.uniform(0.2, 0.8))
    if rng.random() < config.blur:
        image_hwc = _blur(image_hwc, rng)
    if rng.random() < config.noise:
        image_hwc = _add_noise(image_hwc, 1 if config.grey else 3, rng)
    if rng.random() < config.view_circle:
        image_hwc, mask_hw = _look_through_circle(image_hwc, mask_hw, rng)
    if rng.random() < config.cutout:
        image_hwc, mask_hw = _cover_boxes(image_hwc, mask_hw, rng)
    if rng.random() < config.grid_mask:
        image_hwc, mask_hw = _cover_grid(image_hwc, mask_hw, rng)
    if rng.random() < config.jpeg:
        _, encoded = cv2.imencode(".jpg", image_hwc, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))])
        image_hwc = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(image_hwc), np.ascontiguousarray(mask_hw)


def _change_colour(image_hwc: Image, tint: float, rng: Generator) -> Image:
    """Gamma, contrast, brightness and white balance by lookup table; hue and saturation in HSV.

    `tint` is 1, or 0 to leave out what would make channels differ.
    """
    levels = np.arange(256, dtype=np.float32) / 255
    gamma, contrast, brightness = (
        math.exp(rng.uniform(-0.5, 0.5)),
        rng.uniform(0.7, 1.35),
        rng.uniform(-0.12, 0.12),
    )
    curve = (levels**gamma - 0.5) * contrast + 0.5 + brightness
    table = curve[:, None] * np.exp(tint * rng.uniform(-0.15, 0.15, 3))[None]
    image_hwc = cv2.LUT(image_hwc, (table.clip(0, 1) * 255).astype(np.uint8)[None])
    if rng.random() < 0.6 and tint:
        hsv = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2HSV)
        shift, saturation = int(rng.integers(-12, 13)), rng.uniform(0.3, 1.5)
        ramp = np.arange(256)
        tables = np.stack([(ramp + shift) % 180, (ramp * saturation).clip(0, 255), ramp], axis=-1)
        image_hwc = cv2.cvtColor(cv2.LUT(hsv, tables.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB)
    return image_hwc


def _smooth_field(shape: tuple[int, ...], rng: Generator) -> np.ndarray:
    """A random smooth field of 0 to 1, float32 `(H, W, 1)`: a few random values enlarged bicubically."""
    cells = (int(rng.integers(2, 5)), int(rng.integers(2, 6)))
    field = cv2.resize(
        rng.random(cells, dtype=np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC
    )
    return field.clip(0, 1)[:, :, None]


def _blend(image_hwc: Image, colour: np.ndarray, weight: np.ndarray) -> Image:
    mixed = image_hwc + (colour.astype(np.float32) - image_hwc) * weight.astype(np.float32)
    return mixed.clip(0, 255).astype(np.uint8)


def _blur(image_hwc: Image, rng: Generator) -> Image:
    if rng.random() < 0.5:
        return cv2.GaussianBlur(image_hwc, (0, 0), rng.uniform(0.5, 2.0))
    length = int(rng.integers(3, 10))
    kernel = np.zeros((length, length), np.float32)
    end = (int(rng.integers(0, length)), length - 1)
    cv2.line(kernel, (length - 1 - end[0], 0), end, 1.0)
    return cv2.filter2D(image_hwc, -1, kernel / kernel.sum())


def _add_noise(image_hwc: Image, channels: int, rng: Generator) -> Image:
    """Gaussian noise of each of so many channels; one is the same for all."""
    noise = np.empty((*image_hwc.shape[:2], channels), np.int16)
    cv2.setRNGSeed(int(rng.integers(0, 2**31 - 1)))
    cv2.randn(noise, 0, rng.uniform(2, 14))
    return (image_hwc + noise).clip(0, 255).astype(np.uint8)


def _look_through_circle(image_hwc: Image, mask_hw: Mask, rng: Generator) -> tuple[Image, Mask]:
    """The round view of a laparoscope, whole or cut by the sensor; sometimes with a soft rim."""
    height, width = mask_hw.shape
    radius = rng.uniform(0.48, 0.72) * (height if rng.random() < 0.6 else width)
    centre = (int(width * rng.uniform(0.4, 0.6)), int(height * rng.uniform(0.42, 0.58)))
    visible = np.zeros((height, width), np.uint8)
    cv2.circle(visible, centre, int(radius), 1, -1)
    shown = mask_hw * visible
    if rng.random() < 0.5:
        soft = cv2.GaussianBlur(visible.astype(np.float32), (0, 0), rng.uniform(1, height / 24))
        return (image_hwc * soft[:, :, None]).astype(np.uint8), shown
    return image_hwc * visible[:, :, None], shown


def _cover_boxes(image_hwc: Image, mask_hw: Mask, rng: Generator) -> tuple[Image, Mask]:
    image_hwc, mask_hw = image_hwc.copy(), mask_hw.copy()
    height, width = mask_hw.shape
    for _ in range(int(rng.integers(1, 4))):
        box_height, box_width = int(height * rng.uniform(0.04, 0.25)), int(width * rng.uniform(0.04, 0.25))
        top, left = int(rng.integers(0, height - box_height)), int(rng.integers(0, width - box_width))
        image_hwc[top : top + box_height, left : left + box_width] = rng.integers(0, 40)
        mask_hw[top : top + box_height, left : left + box_width] = 0
    return image_hwc, mask_hw


def _cover_grid(image_hwc: Image, mask_hw: Mask, rng: Generator) -> tuple[Image, Mask]:
    """GridMask (Chen et al., 2020): black squares on a regular grid, a third to a half of each period wide."""
    height, width = mask_hw.shape
    period = int(rng.integers(height // 8, height // 2))
    covered = max(1, int(period * rng.uniform(0.33, 0.5)))
    top, left = rng.integers(0, period, 2)
    rows, columns = (np.arange(height) + top) % period < covered, (np.arange(width) + left) % period < covered
    shown = (~np.outer(rows, columns)).astype(np.uint8)
    return image_hwc * shown[:, :, None], mask_hw * shown
