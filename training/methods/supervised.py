"""Supervised training: cross-entropy and soft Dice on labeled pictures; the baseline of every comparison."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from training.config import NetworkConfig
from training.ema import WeightAverage
from training.losses.segmentation import cross_entropy, soft_dice
from training.method import Batch, Method, MethodOptions
from training.networks import build_network

Weight = Annotated[float, Field(ge=0)]


class SupervisedOptions(MethodOptions):
    """`average_decay` 0 validates and exports the network itself, otherwise the average of its weights."""

    cross_entropy_weight: Weight = 1.0
    dice_weight: Weight = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998


class Supervised(Method):
    """One network learning from labels; the average of its weights predicts."""

    options_class = SupervisedOptions
    options: SupervisedOptions

    def __init__(self, options: SupervisedOptions, network: NetworkConfig, classes: int) -> None:
        super().__init__(options, network, classes)
        self.network = build_network(network.name, classes, network.options)
        self.average = WeightAverage(self.network, options.average_decay) if options.average_decay else None

    @property
    def predictor(self) -> nn.Module:
        return self.network if self.average is None else self.average.average

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        logits_nchw = self.network(batch.images_nchw)
        ce = cross_entropy(logits_nchw, batch.targets_nhw, self.options.label_smoothing)
        dice = soft_dice(logits_nchw, batch.targets_nhw)
        weighted = {
            "cross_entropy": (self.options.cross_entropy_weight, ce),
            "dice": (self.options.dice_weight, dice),
        }
        return {name: weight * loss for name, (weight, loss) in weighted.items() if weight > 0}

    def after_step(self, step: int) -> None:
        if self.average is not None:
            self.average.update(self.network)
