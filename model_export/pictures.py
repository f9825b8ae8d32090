"""Pictures for a model: drawn ones of tissue and instruments, with which a bundle is proven without a real frame.

Grey ones, of a heart in a chest, are for models of CT and MRI, which may label nothing in tissue and instruments.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from service.contract.geometry import Image, fit_image, plan_fit
from service.contract.model_card import InputSize, ModelCard


def fit_to_card(image_hwc: Image, card: ModelCard) -> Image:
    """A picture of any size on the canvas of the card's model, exactly as the service fits it."""
    fit = plan_fit(image_hwc.shape[0], image_hwc.shape[1], card.input_size, card.fit)
    return np.ascontiguousarray(fit_image(image_hwc, fit))


def draw_pictures(size: InputSize, count: int, seed: int = 0) -> Iterator[Image]:
    """`count` different pictures, uint8 RGB `(height, width, 3)`, the same ones for the same `seed`."""
    for index in range(count):
        yield draw_picture(size, seed + index)


def draw_picture(size: InputSize, seed: int) -> Image:
    """One picture, uint8 RGB `(height, width, 3)`: mottled tissue and two grey shafts from the edges."""
    random = np.random.default_rng(seed)
    image_hwc = _draw_tissue(size, random)
    for _ in range(2):
        _draw_shaft(image_hwc, random)
    return np.asarray(cv2.GaussianBlur(image_hwc, (0, 0), size.width / 700), dtype=np.uint8)


def draw_scan(size: InputSize, seed: int) -> Image:
    """One picture with three equal channels, uint8 `(height, width, 3)`: two chambers, one in a ring of muscle, in a
    chest."""
    random = np.random.default_rng(seed)
    grey_hw = np.full((size.height, size.width), 8, np.uint8)
    middle = np.array([size.width, size.height]) * random.uniform(0.45, 0.55, 2)
    radius = min(size.height, size.width) * random.uniform(0.08, 0.16)
    beside = middle - radius * np.array([1.7, random.uniform(-0.6, 0.6)])
    for centre, radii, level in (
        (middle, (0.46 * size.width, 0.4 * size.height), random.integers(30, 90)),
        (beside, (1.3 * radius, 1.6 * radius), random.integers(130, 210)),
        (middle, (1.5 * radius, 1.5 * radius), random.integers(50, 110)),
        (middle, (radius, radius), random.integers(150, 240)),
    ):
        axes = tuple(np.rint(radii).astype(int).tolist())
        cv2.ellipse(grey_hw, np.rint(centre).astype(int).tolist(), axes, 0, 0, 360, int(level), cv2.FILLED)
    noise_hw = random.normal(0, 6, grey_hw.shape)
    grainy_hw = np.clip(grey_hw + noise_hw, 0, 255).astype(np.uint8)
    smooth_hw = cv2.GaussianBlur(grainy_hw, (0, 0), max(0.6, size.width / 200))
    return np.ascontiguousarray(np.repeat(smooth_hw[:, :, None], 3, axis=2), dtype=np.uint8)


def _draw_tissue(size: InputSize, random: np.random.Generator) -> Image:
    relief = np.zeros((size.height, size.width), np.float32)
    for cells in (4, 12, 40):
        coarse = random.standard_normal((cells, cells)).astype(np.float32)
        relief += (
            cv2.resize(coarse, (size.width, size.height), interpolation=cv2.INTER_CUBIC) * (4 / cells) ** 0.5
        )
    shade = np.clip(0.7 + 0.2 * relief, 0.1, 1.0)[:, :, None]
    flesh = np.array([205, 85, 75], np.float32) + random.uniform(-25, 25, 3).astype(np.float32)
    return np.ascontiguousarray(np.clip(flesh * shade, 0, 255).astype(np.uint8))


def _draw_shaft(image_hwc: Image, random: np.random.Generator) -> None:
    height, width = image_hwc.shape[:2]
    corner = np.array([random.choice([0, width - 1]), random.uniform(0.2, 1.0) * height])
    tip = np.array([random.uniform(0.3, 0.7) * width, random.uniform(0.25, 0.75) * height])
    across = np.array([corner[1] - tip[1], tip[0] - corner[0]])
    across *= random.uniform(0.03, 0.06) * height / float(np.hypot(*across))
    grey = int(random.integers(60, 170))
    for part, tone in ((1.0, grey), (0.35, min(255, grey + 70))):
        outline = np.array(
            [corner - across * part, corner + across * part, tip + across * part, tip - across * part]
        )
        cv2.fillPoly(image_hwc, [outline.round().astype(np.int32)], (tone, tone, tone), cv2.LINE_AA)
