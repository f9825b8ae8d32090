"""CutMix (Yun et al., ICCV 2019): a box of each picture is taken from another one of the batch.

Boxes are drawn from torch's default CPU generator, which checkpoints hold, so that a resumed run draws the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_boxes(count: int, size: tuple[int, int], probability: float, device: torch.device) -> Tensor:
    """One box per picture, or none: bool `(N, H, W)`, True inside.

    A picture has a box with `probability`. Its sides are sqrt(1 - l) of the picture's, l uniform in 0 to 1, its centre
    is uniform in the picture, and what lies outside is cut off (equation 2 and section 3.1).
    """
    height, width = size
    has_box, area, centre_y, centre_x = torch.rand(4, count, 1)
    side = area.sqrt() * (has_box < probability)
    # pixel centres lie at halves, so a box of side 0 holds none
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    in_rows = (rows - centre_y).abs() < side / 2
    in_columns = (columns - centre_x).abs() < side / 2
    return (in_rows[:, :, None] & in_columns[:, None, :]).to(device)


def mix(values: Tensor, boxes_nhw: Tensor) -> Tensor:
    """`values`, `(N, H, W)` or `(N, C, H, W)`, with the next lower picture's inside each box (the last one's for the
    first). Batches are drawn at random, so a neighbour is as good as any other partner."""
    inside = boxes_nhw if values.ndim == 3 else boxes_nhw[:, None]
    return torch.where(inside, values.roll(1, dims=0), values)
