"""Which unlabeled frames are worth learning from: real feeds are black, on standby or out of the body for minutes.

Every rule looks at a thumbnail of the picture, so it does not depend on the picture's size, and every threshold lies in
a measured gap (docs/training.md). The order matters: a frame is named by the first rule that rejects it. Frames with
broken colours are kept: instruments have their shape in them, and the colour changes of the augmentation reach as far.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from service.contract.geometry import Image
from training.data.samples import Sample

Reason = Literal["black", "noise", "standby", "outside", "blank", "duplicate"]
Signature = NDArray[np.int16]
REASONS: tuple[Reason, ...] = get_args(Reason)

THUMBNAIL = (160, 90)  # width, height
LIT_LEVEL = 40  # of 255, in the brightest channel: the black around a round view is below, dim tissue above
LEAST_LIT = 0.03
LEAST_COARSE = 0.4
FLAT_LEVELS = 12
MOST_FLAT = 0.75
LEAST_TISSUE = 0.2
LEAST_DETAIL = 0.1
SIGNATURE_SIDE = 16
STILL_LEVELS = 8


@dataclass(frozen=True)
class Screening:
    """The frames kept, in their order, and the others by the reason they were left out for."""

    kept: list[Sample]
    rejected: dict[Reason, list[Sample]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return len(self.kept) + sum(map(len, self.rejected.values()))

    def describe(self) -> str:
        """One line: what was kept of how many, and the count of each reason that occurred."""
        counts = ", ".join(f"{len(frames)} {reason}" for reason, frames in self.rejected.items() if frames)
        return f"{len(self.kept)} of {self.total} frames kept" + (f"; left out: {counts}" if counts else "")


def screen(samples: Iterable[Sample]) -> Screening:
    """Load every frame once and keep those worth learning from; holds one picture in memory at a time.

    A duplicate resembles a frame kept before it from the same video. Raises DataError for a frame that cannot be read.
    """
    screening = Screening([], {reason: [] for reason in REASONS})
    signatures: dict[str, list[Signature]] = {}
    for sample in tqdm(samples, desc="screening", unit="frame", disable=None):
        image_hwc = sample.load_image()
        signature, earlier = sign(image_hwc), signatures.setdefault(sample.video, [])
        reason = find_fault(image_hwc) or ("duplicate" if is_duplicate(signature, earlier) else None)
        if reason is not None:
            screening.rejected[reason].append(sample)
            continue
        screening.kept.append(sample)
        earlier.append(signature)
    return screening


def find_fault(image_hwc: Image) -> Reason | None:
    """Why a frame (RGB uint8 `(H, W, 3)`) is not worth learning from by itself, or None."""
    thumbnail_hwc: Image = cv2.resize(image_hwc, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.uint8)
    lit_hw = thumbnail_hwc.max(axis=2) > LIT_LEVEL
    if lit_hw.mean() < LEAST_LIT:
        return "black"
    if coarse_share(image_hwc) < LEAST_COARSE:
        return "noise"
    lit_pc = thumbnail_hwc[lit_hw].astype(np.float32)
    if flat_share(lit_pc) > MOST_FLAT:
        return "standby"
    if tissue_share(lit_pc) < LEAST_TISSUE:
        return "outside"
    if relative_detail(thumbnail_hwc, lit_hw) < LEAST_DETAIL:
        return "blank"
    return None


def coarse_share(image_hwc: Image) -> float:
    """Contrast left in a 32 x 18 thumbnail, as a share of the picture's: averaging takes noise away, and little else.

    The standard deviation of gray levels after averaging over that before; 1 for a picture without contrast.
    """
    gray_hw = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY)
    contrast = float(gray_hw.std())
    coarse = float(cv2.resize(gray_hw, (32, 18), interpolation=cv2.INTER_AREA).std())
    return coarse / contrast if contrast > 0 else 1.0


def flat_share(pixels_pc: NDArray[np.float32]) -> float:
    """The share of pixels `(P, 3)` that have the median colour, give or take a few levels: a screen, not a scene."""
    median_c = np.median(pixels_pc, axis=0)
    return float((np.abs(pixels_pc - median_c).max(axis=1) <= FLAT_LEVELS).mean())


def tissue_share(pixels_pc: NDArray[np.float32]) -> float:
    """The share of pixels `(P, 3)`, RGB, that are red, pink, orange or brown: more red than green and than blue.

    Ratios, so brightness does not matter; smoke turns tissue gray but leaves some of it red.
    """
    red, green, blue = pixels_pc.T
    return float(((red > 1.12 * green) & (red > 1.05 * blue)).mean())


def relative_detail(thumbnail_hwc: Image, lit_hw: NDArray[np.bool_]) -> float:
    """The 90th percentile of gray-level differences across two pixels, over the mean level; in the lit view only.

    Low where the lens touches something or looks into a cap: nothing in the picture has an edge.
    """
    gray_hw = cv2.cvtColor(thumbnail_hwc, cv2.COLOR_RGB2GRAY).astype(np.float32)
    inside_hw = cv2.erode(lit_hw.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1)[1:-1, 1:-1] > 0
    across = gray_hw[1:-1, 2:] - gray_hw[1:-1, :-2]
    down = gray_hw[2:, 1:-1] - gray_hw[:-2, 1:-1]
    steps = np.hypot(across, down)[inside_hw]
    if steps.size == 0:
        return 0.0
    return float(np.percentile(steps, 90) / gray_hw[lit_hw].mean())


def sign(image_hwc: Image) -> Signature:
    """A 16 x 16 RGB thumbnail, int16 so that signatures can be subtracted."""
    side = (SIGNATURE_SIDE, SIGNATURE_SIDE)
    return cv2.resize(image_hwc, side, interpolation=cv2.INTER_AREA).astype(np.int16)


def is_duplicate(signature: Signature, earlier: list[Signature]) -> bool:
    """Whether 95 % of the cells are within a few levels of those of an earlier frame.

    A percentile, not the mean, so that an instrument that moved over a still ground makes a new frame; levels, not a
    correlation, which the black around a round view would raise to near 1 for any two frames.
    """
    if not earlier:
        return False
    differences = np.abs(np.stack(earlier) - signature).max(axis=3).reshape(len(earlier), -1)
    return bool((np.percentile(differences, 95, axis=1) <= STILL_LEVELS).any())
