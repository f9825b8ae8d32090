"""Cross pseudo supervision (Chen, Yuan, Zeng, Wang, CVPR 2021, arXiv 2106.01226)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from training.averaged_networks import TwoNetworks, TwoNetworksOptions
from training.config import Share, Weight
from training.labeled_loss import LabeledLossOptions, labeled_losses
from training.losses.cutmix import draw_boxes, mix
from training.losses.pseudo_label import PseudoLabels, make_pseudo_labels, pseudo_label_cross_entropy
from training.method import Batch, UnlabeledBatch
from training.schedules import ramp_up


class CrossPseudoSupervisionOptions(TwoNetworksOptions, LabeledLossOptions):
    """`cross_weight` (the paper's lambda) is reached after `ramp_steps`.

    `cutmix` is the share of unlabeled pictures that get a box of another one. `learn_from` is the view of an unlabeled
    picture that the networks learn on; their pseudo labels are always made on the weak one.
    """

    cross_weight: Weight = 1.5
    ramp_steps: Annotated[int, Field(ge=0)] = 500
    cutmix: Share = 0.5
    learn_from: Literal["weak", "strong"] = "strong"


class CrossPseudoSupervision(TwoNetworks):
    """Two networks from different random weights learn from all labels and from each other's hard pseudo labels.

    Loss: L_s + lambda L_cps (equations 1 to 3), each the sum over both networks. Where we differ: soft Dice beside the
    cross-entropy on labels, as every method here; lambda is ramped up, because the networks do not start from
    ImageNet weights; pseudo labels are made in eval mode on the weak view and learned on the strong one (the paper has
    one view, `learn_from = "weak"`); the cross loss is not applied to the labeled pictures of the batch, since a recipe
    may list labeled frames among the unlabeled ones; CutMix, which the paper adds as an option, is used by default.
    """

    options_class = CrossPseudoSupervisionOptions
    options: CrossPseudoSupervisionOptions
    strong_views: ClassVar[int] = 1

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        unlabeled = batch.require_unlabeled("cross_pseudo_supervision")
        labels_of = {
            name: make_pseudo_labels(network, unlabeled.weak_nchw, unlabeled.known_nhw)
            for name, network in self.networks.items()
        }
        images_nchw, visible_nhw, boxes_nhw = self._unlabeled_pictures(unlabeled)
        cross_weight = self.options.cross_weight * ramp_up(step, self.options.ramp_steps)
        losses: dict[str, Tensor] = {}
        for name, other in (("first", "second"), ("second", "first")):
            # together, so that BatchNorm's statistics are those of labeled and unlabeled pictures alike
            logits_nchw = self.networks[name](torch.cat([batch.images_nchw, images_nchw]))
            labeled, learned = logits_nchw.tensor_split([len(batch.images_nchw)])
            terms = labeled_losses(labeled, batch.targets_nhw, self.options)
            losses |= {f"{term}_{name}": loss for term, loss in terms.items()}
            if cross_weight > 0:
                labels = PseudoLabels(*(mix(values, boxes_nhw) for values in labels_of[other]))
                cross = pseudo_label_cross_entropy(learned, labels, visible_nhw)
                losses[f"cross_{name}"] = cross_weight * cross
        return losses

    def _unlabeled_pictures(self, unlabeled: UnlabeledBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The mixed pictures to learn on, what is visible in them, and the boxes that were mixed."""
        images_nchw, visible_nhw = unlabeled.strong_nchw[0], unlabeled.visible_nhw[0]
        if self.options.learn_from == "weak":
            images_nchw, visible_nhw = unlabeled.weak_nchw, torch.ones_like(visible_nhw)
        count, _, height, width = images_nchw.shape
        boxes_nhw = draw_boxes(count, (height, width), self.options.cutmix, images_nchw.device)
        return mix(images_nchw, boxes_nhw), mix(visible_nhw, boxes_nhw), boxes_nhw
