"""Mean Teacher (Tarvainen and Valpola, 2017): the average of the student's weights teaches it on unlabeled pictures."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from training.averaged_networks import AverageOptions, OneNetwork
from training.config import Share, ShareBelowOne, Weight
from training.ema import WeightAverage
from training.labeled_loss import LabeledLossOptions, labeled_losses
from training.losses.consistency import CONSISTENCIES, teach
from training.losses.segmentation import IGNORED
from training.method import Batch, UnlabeledBatch
from training.schedules import ramp_up


class MeanTeacherOptions(AverageOptions, LabeledLossOptions):
    """`consistency` is `squared` (the paper's) or `cross_entropy` against the teacher's probabilities.

    Pixels of which the teacher is less sure than `threshold` do not count. `doubt` > 0 also leaves a labeled background
    pixel out of the supervised terms where the teacher is at least that sure of a foreground class: for coarse labels
    that miss things.
    """

    average_decay: Annotated[float, Field(gt=0, lt=1)] = 0.998  # never 0: the average is the teacher
    consistency: Literal["squared", "cross_entropy"] = "cross_entropy"
    consistency_weight: Weight = 1.0
    threshold: ShareBelowOne = 0.0
    ramp_steps: Annotated[int, Field(ge=0)] = 200
    doubt: Share = 0.0


class MeanTeacher(OneNetwork):
    """The teacher sees the weak view, the student the strong one of the same geometry; the teacher predicts.

    Deviations: strong against weak view instead of two draws of the same noise; labeled and unlabeled pictures pass
    the student in one batch, so that BatchNorm sees both.
    """

    options_class = MeanTeacherOptions
    options: MeanTeacherOptions
    average_name: ClassVar[str] = "teacher"
    teacher: WeightAverage
    strong_views: ClassVar[int] = 1

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        unlabeled, options = batch.require_unlabeled("mean_teacher"), self.options
        labeled = len(batch.images_nchw)
        logits_nchw = self.network(torch.cat([batch.images_nchw, unlabeled.strong_nchw[0]]))
        taught_nchw = self._teach(unlabeled)
        counted_nhw = unlabeled.visible_nhw[0] & (taught_nchw.amax(dim=1) >= options.threshold)
        targets_nhw = self._doubt_labels(batch) if options.doubt else batch.targets_nhw
        losses = labeled_losses(logits_nchw[:labeled], targets_nhw, options)
        if options.consistency_weight:
            consistency = CONSISTENCIES[options.consistency](logits_nchw[labeled:], taught_nchw, counted_nhw)
            weight = options.consistency_weight * ramp_up(step, options.ramp_steps)
            losses["consistency"] = weight * consistency
        return losses

    @torch.no_grad()
    def _teach(self, unlabeled: UnlabeledBatch) -> Tensor:
        """The teacher's probabilities for the weak view; certainty where pasted instruments are known."""
        return teach(self.teacher.average(unlabeled.weak_nchw), unlabeled.known_nhw)

    @torch.no_grad()
    def _doubt_labels(self, batch: Batch) -> Tensor:
        taught_nchw = self.teacher.average(batch.images_nchw).float().softmax(dim=1)
        missed_nhw = (batch.targets_nhw == 0) & (taught_nchw[:, 1:].amax(dim=1) >= self.options.doubt)
        return batch.targets_nhw.masked_fill(missed_nhw, IGNORED)
