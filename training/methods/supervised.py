"""Supervised training: cross-entropy and soft Dice on labeled pictures; the baseline of every comparison."""

from __future__ import annotations

from torch import Tensor

from training.averaged_networks import AverageOptions, OneNetwork
from training.config import ShareBelowOne, Weight
from training.losses.segmentation import cross_entropy, soft_dice
from training.method import Batch


class SupervisedOptions(AverageOptions):
    """A term whose weight is 0 is left out."""

    cross_entropy_weight: Weight = 1.0
    dice_weight: Weight = 1.0
    label_smoothing: ShareBelowOne = 0.0


class Supervised(OneNetwork):
    """One network learning from labels; the average of its weights predicts."""

    options_class = SupervisedOptions
    options: SupervisedOptions

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        logits_nchw = self.network(batch.images_nchw)
        ce = cross_entropy(logits_nchw, batch.targets_nhw, self.options.label_smoothing)
        dice = soft_dice(logits_nchw, batch.targets_nhw)
        weighted = {
            "cross_entropy": (self.options.cross_entropy_weight, ce),
            "dice": (self.options.dice_weight, dice),
        }
        return {name: weight * loss for name, (weight, loss) in weighted.items() if weight > 0}
