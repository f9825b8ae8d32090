"""What methods learn from labeled pictures: cross-entropy and soft Dice, and their part of the [method] table."""

from __future__ import annotations

from torch import Tensor

from training.config import ShareBelowOne, Weight
from training.losses.segmentation import cross_entropy, soft_dice
from training.method import MethodOptions


class LabeledLossOptions(MethodOptions):
    """A term whose weight is 0 is left out."""

    cross_entropy_weight: Weight = 1.0
    dice_weight: Weight = 1.0
    label_smoothing: ShareBelowOne = 0.0


def labeled_losses(
    logits_nchw: Tensor, targets_nhw: Tensor, options: LabeledLossOptions
) -> dict[str, Tensor]:
    """The weighted terms `cross_entropy` and `dice`; `targets_nhw` are int64 class ids or IGNORED."""
    losses = {}
    if options.cross_entropy_weight:
        ce = cross_entropy(logits_nchw, targets_nhw, options.label_smoothing)
        losses["cross_entropy"] = options.cross_entropy_weight * ce
    if options.dice_weight:
        losses["dice"] = options.dice_weight * soft_dice(logits_nchw, targets_nhw)
    return losses
