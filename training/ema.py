"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage(nn.Module):
    """Keeps `average`, a copy of a network whose weights follow it: w <- d w + (1 - d) w_network.

    d grows from 0 to `decay` as (1 + n) / (10 + n) over n updates, so that the random first weights are soon forgotten.
    Floating-point buffers (BatchNorm statistics) are averaged too; integer buffers are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average one step toward `network`."""
        self.updates += 1
        count = int(self.updates)
        decay = min(self.decay, (1 + count) / (10 + count))
        current = network.state_dict()
        for name, value in self.average.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(current[name], 1 - decay)
            else:
                value.copy_(current[name])

    def train(self, mode: bool = True) -> WeightAverage:
        """The average is never trained: it stays in eval mode whatever its owner does."""
        return super().train(False)
