"""InfoNCE between vectors that belong to groups: regions of the field of view, or classes.

Queries are `(V, D)`, keys `(K, D)`, and each has the number of its group, int64, or NO_GROUP where the place in the
table is empty. The tables' sizes are options of the method, so memory does not grow with the pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

NO_GROUP = -1


def pull_groups_together(
    queries_vd: Tensor, query_groups_v: Tensor, keys_kd: Tensor, key_groups_k: Tensor, temperature: float
) -> Tensor:
    """Keys of the query's own group attract it, those of other groups repel it; a scalar, float32 at least.

    With s_ij the cosine of query i and key j, P(i) the keys of i's group and N(i) those of the others, a query's loss
    is the mean over p in P(i) of -log(exp(s_ip / t) / (exp(s_ip / t) + sum over n in N(i) of exp(s_in / t))): the form
    of Wang et al., "Exploring Cross-Image Pixel Contrast" (ICCV 2021), in which keys of one group do not compete. A
    group's loss is the mean over its queries, and the result the mean over groups, so that a frequent one weighs no
    more than a rare one. Queries without any key of their group, or of another, are left out; 0 where none is left.
    """
    scores = _cosines(queries_vd, keys_kd) / temperature
    is_pair = (query_groups_v[:, None] != NO_GROUP) & (key_groups_k != NO_GROUP)
    is_same = query_groups_v[:, None] == key_groups_k
    own, other = is_pair & is_same, is_pair & ~is_same
    # finite, because the gradient of a logsumexp of infinities alone is NaN, which nothing but the mask would hide
    against = scores.masked_fill(~other, torch.finfo(scores.dtype).min).logsumexp(dim=1, keepdim=True)
    pair_losses = functional.softplus(against - scores) * own
    query_losses = pair_losses.sum(dim=1) / own.sum(dim=1).clamp(min=1)
    return _mean_over_groups(query_losses, query_groups_v, own.any(dim=1) & other.any(dim=1))


def _mean_over_groups(values_v: Tensor, groups_v: Tensor, counted_v: Tensor) -> Tensor:
    members_v = ((groups_v[:, None] == groups_v) & counted_v).sum(dim=1)
    weights_v = counted_v / members_v.clamp(min=1)  # of one group they add up to 1
    return (values_v * weights_v).sum() / weights_v.sum().clamp(min=1)


def _cosines(queries_vd: Tensor, keys_kd: Tensor) -> Tensor:
    """`(V, K)`, float32 at least; autocast would round them to 8 bits."""
    with torch.autocast(queries_vd.device.type, enabled=False):
        queries, keys = (
            functional.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)
            for vectors in (queries_vd, keys_kd)
        )
        return queries @ keys.T
