"""A bounded memory of the keys of past batches, kept apart by group, so that a rare group is not pushed out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.losses.group_contrast import NO_GROUP


class KeyMemory(nn.Module):
    """The newest `size` vectors of `width` values of each group, first in, first out.

    Its content is in buffers: a run that is resumed, and every process of a run, has the same.
    """

    keys_gsd: Tensor
    stored_g: Tensor  # keys ever stored, so that the next place is known

    def __init__(self, groups: int, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys_gsd", torch.zeros(groups, size, width))
        self.register_buffer("stored_g", torch.zeros(groups, dtype=torch.int64))

    def recall(self) -> tuple[Tensor, Tensor]:
        """Every place: vectors `(G * S, D)` and groups int64 `(G * S)`, NO_GROUP where nothing was stored yet.

        They are copies: storing does not change them.
        """
        groups, size, width = self.keys_gsd.shape
        groups_gs = torch.arange(groups, device=self.stored_g.device)[:, None].expand(-1, size)
        is_empty = torch.arange(size, device=self.stored_g.device) >= self.stored_g[:, None]
        kept = groups_gs.masked_fill(is_empty, NO_GROUP)
        return self.keys_gsd.reshape(-1, width).clone(), kept.flatten()

    @torch.no_grad()
    def store(self, vectors_vd: Tensor, groups_v: Tensor) -> None:
        """Keep these vectors `(V, D)` of groups int64 `(V)` in place of each group's oldest ones."""
        groups, size, _ = self.keys_gsd.shape
        if size == 0:
            return
        for group in range(groups):
            fresh = vectors_vd[groups_v == group]
            end = self.stored_g[group] + len(fresh)
            fresh = fresh[-size:]
            places = (end - len(fresh) + torch.arange(len(fresh), device=end.device)) % size
            self.keys_gsd[group, places] = fresh.to(self.keys_gsd.dtype)
            self.stored_g[group] = end
