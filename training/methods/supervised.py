"""Supervised training: cross-entropy and soft Dice on labeled pictures; the baseline of every comparison."""

from __future__ import annotations

from torch import Tensor

from training.averaged_networks import AverageOptions, OneNetwork
from training.labeled_loss import LabeledLossOptions, labeled_losses
from training.method import Batch


class SupervisedOptions(AverageOptions, LabeledLossOptions):
    """Those of the labeled loss and of the average, and no others."""


class Supervised(OneNetwork):
    """One network learning from labels; the average of its weights predicts."""

    options_class = SupervisedOptions
    options: SupervisedOptions

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return labeled_losses(self.network(batch.images_nchw), batch.targets_nhw, self.options)
