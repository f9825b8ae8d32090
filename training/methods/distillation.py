"""Distillation (Hinton, Vinyals and Dean, 2015): a large trained network teaches a small one on unlabeled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from service.errors import DataError
from training.averaged_networks import AverageOptions, OneNetwork
from training.config import NetworkConfig, ShareBelowOne, Weight
from training.labeled_loss import LabeledLossOptions, labeled_losses
from training.losses.consistency import soft_cross_entropy, teach
from training.method import Batch
from training.networks import build_network


class DistillationOptions(AverageOptions, LabeledLossOptions):
    """`teacher` is the large network's table, as [network] in the recipe of its run; `teacher_from` its checkpoint.

    Logits are divided by `temperature` before both softmaxes, which teaches how sure the teacher is. Pixels of which
    it is less sure than `threshold` do not count.
    """

    teacher: NetworkConfig = NetworkConfig()
    teacher_from: str = ""
    distillation_weight: Weight = 1.0
    temperature: Annotated[float, Field(gt=0, le=20)] = 2.0
    threshold: ShareBelowOne = 0.0


class Teacher(nn.Module):
    """A network that is only asked: frozen, and in eval mode whatever its owner does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images_nchw: Tensor) -> Tensor:
        logits_nchw: Tensor = self.network(images_nchw)
        return logits_nchw

    def train(self, mode: bool = True) -> Teacher:
        """The teacher is never trained."""
        return super().train(False)


class Distillation(OneNetwork):
    """The student learns from labels, and on the strong view from what the teacher says of the weak one.

    T^2 makes up for the gradients' 1 / T^2 (section 2 of the paper). Deviations: cross-entropy with the teacher's
    probabilities for every pixel instead of one class a picture, and for unlabeled pictures only; two views instead of
    one; the average of the student's weights predicts. The teacher's weights are part of the checkpoint, so that a run
    resumes without the teacher's own.
    """

    options_class = DistillationOptions
    options: DistillationOptions
    strong_views: ClassVar[int] = 1

    def __init__(self, options: DistillationOptions, network: NetworkConfig, classes: int) -> None:
        super().__init__(options, network, classes)
        self.teacher = Teacher(build_network(options.teacher.name, classes, options.teacher.options))

    @property
    def segmenters(self) -> list[nn.Module]:
        return [*super().segmenters, self.teacher.network]

    def prepare(self) -> None:
        """Read the teacher. Raises DataError where there is none, or it is another network than the recipe says."""
        from training.checkpoint import (
            load_checkpoint,  # which knows the methods, and so cannot be known by them
        )

        path = self.options.teacher_from
        if not path:
            raise DataError(
                "The recipe names no teacher.",
                "the checkpoint of a trained network",
                "Set method.teacher_from, for example to runs/large/best.pt.",
            )
        checkpoint = load_checkpoint(Path(path))
        if (checkpoint.recipe.network, len(checkpoint.classes)) != (self.options.teacher, self.classes):
            raise DataError(
                f"{path} holds {checkpoint.recipe.network} with {len(checkpoint.classes)} classes.",
                f"{self.options.teacher} with {self.classes}",
                "Repeat its [network] table in [method.teacher].",
            )
        self.teacher.network.load_state_dict(checkpoint.build_predictor().state_dict())

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        unlabeled, options = batch.require_unlabeled("distillation"), self.options
        labeled = len(batch.images_nchw)
        logits_nchw = self.network(torch.cat([batch.images_nchw, unlabeled.strong_nchw[0]]))
        losses = labeled_losses(logits_nchw[:labeled], batch.targets_nhw, options)
        if options.distillation_weight:
            answer_nchw = self.teacher(unlabeled.weak_nchw).float()
            sure_nhw = answer_nchw.softmax(dim=1).amax(dim=1) >= options.threshold
            taught_nchw = teach(answer_nchw / options.temperature, unlabeled.known_nhw)
            softened_nchw = logits_nchw[labeled:] / options.temperature
            distance = soft_cross_entropy(softened_nchw, taught_nchw, unlabeled.visible_nhw[0] & sure_nhw)
            losses["distillation"] = options.distillation_weight * options.temperature**2 * distance
        return losses
