"""What is contrasted of an encoder's maps: regions of the field of view, or cells of the classes.

A map `(M, C, h, w)` has P = h * w cells, in rows from the top. Regions and classes are *groups*, numbered from 0; a
cell that belongs to none has NO_GROUP.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.losses.group_contrast import NO_GROUP

CellRule = Literal["centre", "mean"]


class Samples(NamedTuple):
    """Vectors `(V, C)` and their groups, int64 `(V)`; a place with NO_GROUP is empty."""

    vectors_vc: Tensor
    groups_v: Tensor


def take_cells(maps_mchw: Tensor) -> Tensor:
    """The vectors `(M, P, C)` of a map's cells, float32."""
    return maps_mchw.flatten(2).transpose(1, 2).float()


def find_regions(
    origins_m23: Tensor, size: tuple[int, int], cells: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """The region, int64 `(M, P)`, of the `grid` of (rows, columns) over each picture in which the cells' middles lay
    before the picture was moved; NO_GROUP beyond the picture.

    `origins_m23` is that of UnlabeledBatch, `size` the pictures' and `cells` the map's (height, width).
    """
    rows, columns = (
        (torch.arange(count, device=origins_m23.device) + 0.5) * (length / count) - 0.5
        for count, length in zip(cells, size, strict=True)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    pixels_3p = torch.stack([x.flatten(), y.flatten(), torch.ones_like(x).flatten()])
    across, down = (origins_m23.float() @ pixels_3p).unbind(dim=1)
    row, column = (down * grid[0]).floor().long(), (across * grid[1]).floor().long()
    inside = (row >= 0) & (row < grid[0]) & (column >= 0) & (column < grid[1])
    return torch.where(inside, row * grid[1] + column, NO_GROUP)


def label_cells(
    probabilities_mchw: Tensor, cells: tuple[int, int], rule: CellRule, confidence: float
) -> Tensor:
    """The most probable class of every cell, int64 `(M, P)`; NO_GROUP where its probability is under `confidence`.

    `rule` takes the probabilities of the pixel in the cell's middle, or their mean over the cell, which is sure of
    cells of one class only. A pixel whose probabilities are all 0 has no class.
    """
    certainty, classes = _shrink(probabilities_mchw, cells, rule).flatten(2).max(dim=1)
    return classes.masked_fill((certainty < confidence) | (certainty == 0), NO_GROUP)


def see_cells(visible_mhw: Tensor, cells: tuple[int, int], rule: CellRule) -> Tensor:
    """Whether each cell is visible, bool `(M, P)`: its middle, or at least half of it."""
    return (_shrink(visible_mhw[:, None].float(), cells, rule) >= 0.5).flatten(1)


def average_groups(vectors_mpc: Tensor, groups_mp: Tensor, groups: int) -> Samples:
    """One vector for each picture and group, M * groups in all: the mean of the picture's cells in that group."""
    numbers = torch.arange(groups, device=groups_mp.device)
    is_member = groups_mp[:, None, :] == numbers[:, None]
    count_mg = is_member.sum(dim=2)
    with torch.autocast(vectors_mpc.device.type, enabled=False):
        means_mgc = is_member.to(vectors_mpc.dtype) @ vectors_mpc / count_mg.clamp(min=1)[:, :, None]
    return Samples(means_mgc.flatten(0, 1), torch.where(count_mg > 0, numbers, NO_GROUP).flatten())


def draw_from_groups(vectors_mpc: Tensor, groups_mp: Tensor, groups: int, limit: int) -> Samples:
    """At most `limit` different cells of each group, over all pictures: groups * limit places, some of them empty.

    They are drawn from torch's own generator on the CPU, whose state a checkpoint keeps.
    """
    flat_groups = groups_mp.flatten()
    chances = torch.rand(len(flat_groups)).to(groups_mp.device)
    numbers = torch.arange(groups, device=groups_mp.device)[:, None]
    chances_gk, cells_gk = torch.where(flat_groups == numbers, chances, -1.0).topk(
        min(limit, len(flat_groups)), dim=1
    )
    drawn_groups = torch.where(chances_gk >= 0, numbers, NO_GROUP).flatten()
    return Samples(vectors_mpc.flatten(0, 1)[cells_gk.flatten()], drawn_groups)


def _shrink(values_mchw: Tensor, cells: tuple[int, int], rule: CellRule) -> Tensor:
    if rule == "mean":
        return functional.adaptive_avg_pool2d(values_mchw, cells)
    return functional.interpolate(values_mchw, cells, mode="nearest-exact")
