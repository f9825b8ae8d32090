"""Supervised losses for class maps."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

# the class id of a pixel that does not count
IGNORED = -100


def cross_entropy(logits_nchw: Tensor, targets_nhw: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean pixel cross-entropy; `targets_nhw` are int64 class ids or IGNORED. `smoothing` is 0 to 1."""
    return functional.cross_entropy(
        logits_nchw.float(), targets_nhw, ignore_index=IGNORED, label_smoothing=smoothing
    )


def soft_dice(logits_nchw: Tensor, targets_nhw: Tensor, epsilon: float = 1.0) -> Tensor:
    """1 - mean soft Dice over the foreground classes, each over the whole batch (Milletari et al., 2016).

    Dice_c = (2 sum p_c t_c + epsilon) / (sum p_c + sum t_c + epsilon), over the pixels that are not IGNORED. Deviation:
    sums without squares, and over the batch rather than a picture, so that a picture without instruments gives no
    degenerate term.
    """
    counted = (targets_nhw != IGNORED).unsqueeze(1)
    probabilities = logits_nchw.float().softmax(dim=1)[:, 1:] * counted
    classes_nhw = targets_nhw.clamp(
        min=0
    )  # an ignored pixel becomes background, which no foreground sum holds
    targets = (
        functional.one_hot(classes_nhw, logits_nchw.shape[1]).movedim(-1, 1)[:, 1:].to(probabilities.dtype)
    )
    shared = (probabilities * targets).sum(dim=(0, 2, 3))
    total = probabilities.sum(dim=(0, 2, 3)) + targets.sum(dim=(0, 2, 3))
    return 1 - ((2 * shared + epsilon) / (total + epsilon)).mean()
