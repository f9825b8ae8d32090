"""Pseudo labels and learning from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class PseudoLabels(NamedTuple):
    """Class ids int64 `(N, H, W)` and the probability, float32 `(N, H, W)`, that their network gave them."""

    targets_nhw: Tensor
    confidence_nhw: Tensor


@torch.no_grad()
def predict(network: nn.Module, images_nchw: Tensor) -> Tensor:
    """The logits `(N, C, H, W)`, float32 and without gradient, of a network that is being trained.

    It predicts in eval mode, as it will when it is used, and is then put back into the mode it was in: labels made of
    it carry no dropout noise, do not depend on what else is in the batch, and leave BatchNorm's statistics alone.
    """
    was_training = network.training
    network.eval()
    logits_nchw: Tensor = network(images_nchw).float()
    network.train(was_training)
    return logits_nchw


@torch.no_grad()
def make_pseudo_labels(network: nn.Module, images_nchw: Tensor, known_nhw: Tensor) -> PseudoLabels:
    """The most probable class of every pixel, without gradient; where `known_nhw` is not 0, that class for certain."""
    confidence, targets = predict(network, images_nchw).softmax(dim=1).max(dim=1)
    is_known = known_nhw > 0
    return PseudoLabels(torch.where(is_known, known_nhw, targets), confidence.masked_fill(is_known, 1.0))


def pseudo_label_cross_entropy(
    logits_nchw: Tensor, labels: PseudoLabels, visible_nhw: Tensor | None = None, threshold: float = 0.0
) -> Tensor:
    """Cross-entropy against hard pseudo labels, the mean over the visible pixels; 0 where nothing is visible.

    Pixels whose confidence is under `threshold` add 0 but still count in the mean (FixMatch, Sohn et al., 2020,
    equation 4), so the term grows as the network becomes sure. `visible_nhw` is bool `(N, H, W)`; without it all is.
    """
    losses = functional.cross_entropy(logits_nchw.float(), labels.targets_nhw, reduction="none")
    losses = losses * (labels.confidence_nhw >= threshold)
    if visible_nhw is None:
        return losses.mean()
    return (losses * visible_nhw).sum() / visible_nhw.sum().clamp(min=1)
