"""What two networks of the same picture say together: their mean, and where they disagree."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MeanOfViews(nn.Module):
    """Two networks that predict as one: the softmax of its logits is the mean of their probabilities.

    The networks are held, not copied: moving this module or switching its mode does so to them; it starts in theirs.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.training = first.training and second.training

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Logits `(N, C, H, W)`, float32: log((softmax(first) + softmax(second)) / 2), so never above 0."""
        first = self.first(images_nchw).float().log_softmax(dim=1)
        second = self.second(images_nchw).float().log_softmax(dim=1)
        return torch.logaddexp(first, second) - math.log(2)

    def disagreement(self, images_nchw: Tensor) -> Tensor:
        """How far the two class distributions of each pixel lie apart, float32 `(N, H, W)`, 0 (alike) to 1 (disjoint).

        Their total variation, sum_c |p_c - q_c| / 2; for two classes that is |p_1 - q_1|.
        """
        first = self.first(images_nchw).float().softmax(dim=1)
        second = self.second(images_nchw).float().softmax(dim=1)
        return (first - second).abs().sum(dim=1) / 2
