"""The probabilities that a teacher gives, and how far a network's prediction is from them for the same pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


@torch.no_grad()
def teach(logits_nchw: Tensor, known_nhw: Tensor) -> Tensor:
    """The probabilities `(N, C, H, W)`, float32 and without gradient, that a prediction teaches.

    `known_nhw`, int64 `(N, H, W)`, are class ids; where it is not 0, that class is certain.
    """
    taught_nchw = logits_nchw.float().softmax(dim=1)
    known_nchw = functional.one_hot(known_nhw, taught_nchw.shape[1]).movedim(-1, 1).to(taught_nchw.dtype)
    return torch.where((known_nhw > 0).unsqueeze(1), known_nchw, taught_nchw)


def squared_difference(logits_nchw: Tensor, taught_nchw: Tensor, counted_nhw: Tensor) -> Tensor:
    """Squared difference of probabilities, mean over classes and counted pixels (Tarvainen and Valpola, 2017).

    `logits_nchw` float `(N, C, H, W)`, `taught_nchw` probabilities of the same shape without gradient, `counted_nhw`
    bool `(N, H, W)`. Without a counted pixel it is 0.
    """
    difference_nhw = (logits_nchw.float().softmax(dim=1) - taught_nchw).square().mean(dim=1)
    return _mean_over(difference_nhw, counted_nhw)


def soft_cross_entropy(logits_nchw: Tensor, taught_nchw: Tensor, counted_nhw: Tensor) -> Tensor:
    """Cross-entropy against the taught probabilities, mean over counted pixels; shapes as `squared_difference`."""
    entropy_nhw = -(taught_nchw * logits_nchw.float().log_softmax(dim=1)).sum(dim=1)
    return _mean_over(entropy_nhw, counted_nhw)


CONSISTENCIES = {"squared": squared_difference, "cross_entropy": soft_cross_entropy}


def _mean_over(values_nhw: Tensor, counted_nhw: Tensor) -> Tensor:
    counted = counted_nhw.to(values_nhw.dtype)
    return (values_nhw * counted).sum() / counted.sum().clamp(min=1)
