"""Does the confidence mean something? How often pixels are right at each confidence, and what finds those that are not.

Everything is counted at the 256 levels of a bundle's second output, so a checkpoint and its bundle are judged alike:
confidence is 255 times the probability of the predicted class, disagreement 255 times the total variation of two views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from service.contract.geometry import FitRule, Image, Mask, fit_image, plan_fit, restore_mask
from service.contract.model_card import InputSize
from service.errors import DataError
from training.data.samples import Sample
from training.metrics import dice_and_iou

LEVELS = 256
BINS = 20


class Prediction(NamedTuple):
    """uint8 `(N, H, W)`: class ids, levels of confidence, and of disagreement where there are two views."""

    masks_nhw: Mask
    confidences_nhw: NDArray[np.uint8]
    disagreements_nhw: NDArray[np.uint8] | None = None


PredictUncertain = Callable[[Image], Prediction]
"""From uint8 RGB `(N, H, W, 3)`."""


@dataclass(frozen=True)
class Bin:
    """The pixels whose value, level / 255, is from `low` up to `high`: how many, their mean value, the share right."""

    low: float
    high: float
    pixels: int
    mean: float
    right: float


@dataclass
class LevelCounts:
    """How many pixels there are at each of 256 levels, and how many of them are right."""

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LEVELS, np.int64))
    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LEVELS, np.int64))

    def add(self, predicted: Mask, true: Mask, levels: NDArray[np.uint8]) -> None:
        """Count pixels; three uint8 arrays of one shape."""
        self.pixels += np.bincount(levels.ravel(), minlength=LEVELS)
        self.right += np.bincount(levels[predicted == true], minlength=LEVELS)

    def bins(self, count: int = BINS) -> list[Bin]:
        """`count` bins of equal width over 0 to 1, without the empty ones."""
        values = np.arange(LEVELS) / (LEVELS - 1)
        places = np.minimum(np.arange(LEVELS) * count // (LEVELS - 1), count - 1)
        bins = []
        for place in range(count):
            inside = places == place
            total = int(self.pixels[inside].sum())
            if total:
                mean = float(self.pixels[inside] @ values[inside]) / total
                right = int(self.right[inside].sum()) / total
                bins.append(Bin(place / count, (place + 1) / count, total, mean, right))
        return bins

    def calibration_error(self, count: int = BINS) -> float:
        """Expected calibration error (Guo et al., 2017, equation 3): mean over pixels of |share right - mean value|
        of their bins; 0 without pixels."""
        bins = self.bins(count)
        total = sum(each.pixels for each in bins)
        return sum(each.pixels * abs(each.right - each.mean) for each in bins) / total if total else 0.0

    def area_under_curve(self, rises_with_error: bool) -> float | None:
        """AUROC of "this pixel is wrong": how often a wrong pixel is above a right one, ties counted half.

        Above is a higher level where `rises_with_error` (disagreement), a lower one otherwise (confidence). None when
        all pixels are right, or all wrong.
        """
        wrong = (self.pixels - self.right).astype(np.float64)
        right = self.right.astype(np.float64)
        if not rises_with_error:
            wrong, right = wrong[::-1], right[::-1]
        pairs = wrong.sum() * right.sum()
        if not pairs:
            return None
        right_below = np.cumsum(right) - right
        return float(wrong @ (right_below + right / 2) / pairs)


@dataclass(frozen=True)
class FrameUncertainty:
    """One frame: its Dice, the mean of 1 - confidence over its pixels, and of the disagreement where there is one."""

    sample_id: str
    video: str
    dice: float
    uncertainty: float
    disagreement: float | None


@dataclass
class Reliability:
    """What was counted on one data set: confidence over all pixels and over those not predicted background,
    disagreement."""

    data: str
    confidence: LevelCounts = field(default_factory=LevelCounts)
    instrument: LevelCounts = field(default_factory=LevelCounts)
    disagreement: LevelCounts | None = None
    frames: list[FrameUncertainty] = field(default_factory=list)

    def add(self, sample: Sample, prediction: Prediction, true_hw: Mask, classes: int) -> None:
        """Count one frame; `prediction` holds it alone, at the size of its label."""
        predicted_hw, confidence_hw = prediction.masks_nhw[0], prediction.confidences_nhw[0]
        is_tool = predicted_hw > 0
        self.confidence.add(predicted_hw, true_hw, confidence_hw)
        self.instrument.add(predicted_hw[is_tool], true_hw[is_tool], confidence_hw[is_tool])
        disagreement = None
        if prediction.disagreements_nhw is not None:
            disagreement_hw = prediction.disagreements_nhw[0]
            self.disagreement = self.disagreement or LevelCounts()
            self.disagreement.add(predicted_hw, true_hw, disagreement_hw)
            disagreement = float(disagreement_hw.mean()) / 255
        dice, _ = dice_and_iou(predicted_hw, true_hw, classes)
        uncertainty = 1 - float(confidence_hw.mean()) / 255
        self.frames.append(FrameUncertainty(sample.sample_id, sample.video, dice, uncertainty, disagreement))

    def to_json(self) -> dict[str, Any]:
        """All figures, with the bins of the diagram and every frame's."""
        dices = [frame.dice for frame in self.frames]
        figures = {
            "data": self.data,
            "frames": len(self.frames),
            "pixels": int(self.confidence.pixels.sum()),
            "right": int(self.confidence.right.sum()) / max(1, int(self.confidence.pixels.sum())),
            "confidence": _describe_confidence(self.confidence),
            "confidence_of_instrument": _describe_confidence(self.instrument),
            "spearman_dice_uncertainty": rank_correlation(dices, [f.uncertainty for f in self.frames]),
        }
        disagreements = [f.disagreement for f in self.frames if f.disagreement is not None]
        if self.disagreement is not None:
            figures["disagreement"] = {
                "auroc_wrong": self.disagreement.area_under_curve(rises_with_error=True),
                "bins": [asdict(each) for each in self.disagreement.bins()],
            }
            figures["spearman_dice_disagreement"] = rank_correlation(dices, disagreements)
        return {**figures, "per_frame": [asdict(frame) for frame in self.frames]}

    def to_table(self) -> str:
        """The figures, a line each; "-" where one is not defined."""
        figures = self.to_json()
        rows = [
            ("pixels right", figures["right"]),
            ("expected calibration error", figures["confidence"]["ece"]),
            ("... of pixels not predicted background", figures["confidence_of_instrument"]["ece"]),
            ("AUROC of a wrong pixel by 1 - confidence", figures["confidence"]["auroc_wrong"]),
        ]
        if self.disagreement is not None:
            rows.append(("AUROC of a wrong pixel by disagreement", figures["disagreement"]["auroc_wrong"]))
        rows.append(("Spearman of frames: Dice, mean uncertainty", figures["spearman_dice_uncertainty"]))
        if self.disagreement is not None:
            rows.append(
                ("Spearman of frames: Dice, mean disagreement", figures["spearman_dice_disagreement"])
            )
        lines = [f"{figures['frames']} frames, {figures['pixels']} pixels"]
        lines += [f"{name:<46}{'-' if value is None else f'{value:.4f}':>8}" for name, value in rows]
        return "\n".join(lines)


def measure_reliability(
    predict: PredictUncertain,
    samples: Sequence[Sample],
    input_size: InputSize,
    fit: FitRule,
    *,
    classes: int = 2,
    data: str = "",
    progress: bool = True,
) -> Reliability:
    """Fit each frame as the service does, predict, and count at the frame's own size. Raises DataError without labels.

    A pixel counts once, so a large frame counts more than a small one.
    """
    reliability = Reliability(data)
    for sample in tqdm(samples, desc=data or "reliability", unit="frame", disable=not progress):
        image_hwc, true_hw = sample.load()
        if true_hw is None:
            raise DataError(
                f"{sample.sample_id} is unlabeled.", "labeled frames", "Measure on data with masks."
            )
        planned = plan_fit(*image_hwc.shape[:2], input_size, fit)
        prediction = predict(fit_image(image_hwc, planned)[None])
        restored = (None if each is None else restore_mask(each[0], planned)[None] for each in prediction)
        reliability.add(sample, Prediction(*restored), true_hw, classes)
    return reliability


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's: the correlation of ranks, those of equal values averaged. None where one side does not vary."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _describe_confidence(counts: LevelCounts) -> dict[str, Any]:
    return {
        "ece": counts.calibration_error(),
        "auroc_wrong": counts.area_under_curve(rises_with_error=False),
        "bins": [asdict(each) for each in counts.bins()],
    }
