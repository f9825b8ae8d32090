"""InfoNCE between the positions of two pictures' maps: Min-Max Similarity (arXiv 2203.15177), van den Oord et al. 2018.

Vectors are `(N, K, D)`: K positions of N pictures. The matrices of similarities are `(N, K, K)`, so their memory is
bounded by the number of positions that are drawn, whatever the size of the pictures.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

Similarity = Literal["l2", "l1"]


def draw_positions(pictures: int, places: int, limit: int) -> Tensor:
    """At most `limit` different positions of `places` for each picture, int64 `(N, min(places, limit))`, on the CPU.

    They come from torch's own generator there, whose state a checkpoint keeps.
    """
    if places <= limit:
        return torch.arange(places).expand(pictures, -1)
    return torch.rand(pictures, places).argsort(dim=1)[:, :limit]


def take_positions(maps_nchw: Tensor, positions_nk: Tensor) -> Tensor:
    """The vectors `(N, K, D)` of maps `(N, D, H, W)` at positions y * W + x."""
    vectors = maps_nchw.flatten(2).transpose(1, 2)
    index = positions_nk.to(vectors.device)[:, :, None].expand(-1, -1, vectors.shape[2])
    return vectors.gather(1, index)


def pull_same_positions(
    first_nkd: Tensor, second_nkd: Tensor, temperature: float, similarity: Similarity, symmetric: bool
) -> Tensor:
    """The "max" term: the same position of two views is a pair, every other position of that picture a negative.

    With s_ij the similarity of position i in the first view and j in the second: the mean over pictures and i of
    -log(exp(s_ii / t) / sum_j exp(s_ij / t)); `symmetric` takes the mean of that and of the views exchanged.
    """
    scores = _similarities(first_nkd, second_nkd, similarity) / temperature
    same = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
    loss = functional.cross_entropy(scores.transpose(1, 2), same)  # (N, classes j, i)
    if symmetric:
        loss = (loss + functional.cross_entropy(scores, same)) / 2
    return loss


def push_all_apart(
    first_nkd: Tensor, second_nkd: Tensor, temperature: float, similarity: Similarity
) -> Tensor:
    """The "min" term: the pictures differ, so every pair of positions is a negative.

    The mean over pictures and i of log(1 + mean_j exp(s_ij / t)), which is InfoNCE with a constant similarity of 0 in
    the positive's place. Our choice: with the mean in place of the sum the loss does not depend on how many
    positions were drawn, and no direction needs to be exchanged for the gradient to reach both views.
    """
    scores = _similarities(first_nkd, second_nkd, similarity) / temperature
    log_mean = scores.logsumexp(dim=2) - math.log(scores.shape[2])
    return functional.softplus(log_mean).mean()


def _similarities(first_nkd: Tensor, second_nkd: Tensor, similarity: Similarity) -> Tensor:
    """Products of the normalised vectors, float32 at least, `(N, K, K)`; autocast would round them to 8 bits."""
    order = {"l2": 2.0, "l1": 1.0}[similarity]
    with torch.autocast(first_nkd.device.type, enabled=False):
        first, second = (
            functional.normalize(
                vectors.to(torch.promote_types(vectors.dtype, torch.float32)), p=order, dim=2
            )
            for vectors in (first_nkd, second_nkd)
        )
        return first @ second.transpose(1, 2)
