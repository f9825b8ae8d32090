"""The structure loss of PraNet (Fan et al., MICCAI 2020): BCE and IoU that weigh the surroundings of edges."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


def class_log_odds(logits_nchw: Tensor) -> Tensor:
    """log(p_c / (1 - p_c)) of every foreground class, float32 `(N, C - 1, H, W)`, with p the softmax.

    It is l_c - log sum over k != c of exp(l_k): for two classes l_1 - l_0, the one score of a binary network.
    """
    logits = logits_nchw.float()
    return torch.stack(
        [
            logits[:, c] - torch.cat([logits[:, :c], logits[:, c + 1 :]], dim=1).logsumexp(dim=1)
            for c in range(1, logits.shape[1])
        ],
        dim=1,
    )


def structure_loss(logits_nchw: Tensor, targets_nhw: Tensor, window: int = 31, gain: float = 5.0) -> Tensor:
    """Boundary-weighted BCE plus boundary-weighted IoU, a scalar; `targets_nhw` are int64 class ids.

    For a picture and a foreground class, with m its mask, p its probability and w = 1 + gain |mean_window(m) - m|:
    sum(w BCE(p, m)) / sum(w) + 1 - (sum(w p m) + 1) / (sum(w (p + m - p m)) + 1); the mean over both.

    Deviations: more than two classes are taken one against the rest; the mean over the window counts only pixels of the
    picture (PraNet pads with 0), because an instrument that leaves the picture has no boundary there.
    """
    odds = class_log_odds(logits_nchw)
    masks = functional.one_hot(targets_nhw, logits_nchw.shape[1]).movedim(-1, 1)[:, 1:].to(odds.dtype)
    nearby = _average_around(masks, window)
    weights = 1 + gain * (nearby - masks).abs()
    bce = functional.binary_cross_entropy_with_logits(odds, masks, reduction="none")
    weighted_bce = (weights * bce).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))
    probabilities = odds.sigmoid()
    shared = (weights * probabilities * masks).sum(dim=(2, 3))
    total = (weights * (probabilities + masks)).sum(dim=(2, 3))
    return (weighted_bce + 1 - (shared + 1) / (total - shared + 1)).mean()


def _average_around(masks: Tensor, window: int) -> Tensor:
    """The mean over a square window within the picture, by rows and then by columns: 2 x window sums, not window^2."""
    for kernel in ((window, 1), (1, window)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        masks = functional.avg_pool2d(masks, kernel, stride=1, padding=padding, count_include_pad=False)
    return masks
