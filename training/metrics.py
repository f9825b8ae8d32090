"""Dice, IoU and normalised surface distance of one frame, and their mean with a confidence interval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from service.contract.geometry import Mask

BOOTSTRAP_ROUNDS = 2000


def dice_and_iou(predicted_hw: Mask, true_hw: Mask, classes: int) -> tuple[float, float]:
    """Mean over the foreground classes present in either mask; 1 where both are empty.

    Dice = 2 |P n T| / (|P| + |T|), IoU = |P n T| / |P u T|.
    """
    dices, ious = [], []
    for class_id in range(1, classes):
        predicted, true = predicted_hw == class_id, true_hw == class_id
        total = int(predicted.sum()) + int(true.sum())
        if total:
            shared = int((predicted & true).sum())
            dices.append(2 * shared / total)
            ious.append(shared / (total - shared))
    if not dices:
        return 1.0, 1.0
    return float(np.mean(dices)), float(np.mean(ious))


def class_dices(predicted_hw: Mask, true_hw: Mask, classes: int) -> tuple[float | None, ...]:
    """Dice of each foreground class, in the order of their ids; None for one that is in neither mask."""
    dices: list[float | None] = []
    for class_id in range(1, classes):
        predicted, true = predicted_hw == class_id, true_hw == class_id
        total = int(predicted.sum()) + int(true.sum())
        dices.append(2 * int((predicted & true).sum()) / total if total else None)
    return tuple(dices)


def normalised_surface_distance(
    predicted_hw: Mask, true_hw: Mask, classes: int, tolerance_px: float
) -> float:
    """The share of both outlines that lies within `tolerance_px` of the other (Nikolov et al., 2018; MONAI's code).

    Mean over the foreground classes present in either mask; 1 where both are empty, 0 where only one is.
    """
    import torch  # here, because these two take seconds and the command line must not
    from monai.metrics import compute_surface_dice

    scores = []
    for class_id in range(1, classes):
        predicted, true = predicted_hw == class_id, true_hw == class_id
        if predicted.any() and true.any():
            pair = (torch.from_numpy(mask)[None, None] for mask in (predicted, true))
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # MONAI's, of its own code
                score = compute_surface_dice(*pair, class_thresholds=[tolerance_px], include_background=True)
            scores.append(float(score))
        elif predicted.any() or true.any():
            scores.append(0.0)
    return float(np.mean(scores)) if scores else 1.0


def confidence_interval(values: Sequence[float], groups: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean, frames drawn with replacement within each video.

    Neighbouring frames are alike, so this is the spread for these videos, not for new operations.
    """
    array, labels = np.asarray(values), np.asarray(groups)
    rng = np.random.default_rng(seed)
    sums = np.zeros(BOOTSTRAP_ROUNDS)
    for group in np.unique(labels):
        members = array[labels == group]
        sums += members[rng.integers(0, len(members), (BOOTSTRAP_ROUNDS, len(members)))].sum(axis=1)
    low, high = np.percentile(sums / len(array), (2.5, 97.5))
    return float(low), float(high)
