"""Segmentation networks, each a table entry: name -> "module:Class".

A network gives logits `(N, C, H, W)` for normalised pictures `(N, 3, H, W)`; `features(images)` are the encoder's
feature maps from fine to coarse, `head(features, size)` turns them into logits, `forward` is both.
"""

from __future__ import annotations

import torch
from torch import nn

from training.registry import find_entry

NETWORKS = {
    "edge": "training.networks.edge:EdgeNetwork",
    "mms_unet": "training.networks.mms_unet:MmsUNet",
}


def build_network(name: str, classes: int, options: dict[str, object] | None = None) -> nn.Module:
    """A freshly initialised network. `options` are the keyword arguments of its class."""
    network_class = find_entry(NETWORKS, "network", name, "Check [network] name in the recipe.")
    network: nn.Module = network_class(classes=classes, **(options or {}))
    return network


@torch.no_grad()
def measure_features(network: nn.Module) -> dict[int, tuple[int, int]]:
    """Of every map of `features`, by its stride: its place among them and its channels."""
    side, was_training = 128, network.training
    device = next(network.parameters()).device
    maps = network.eval().features(torch.zeros(1, 3, side, side, device=device))
    network.train(was_training)
    return {side // values.shape[2]: (place, values.shape[1]) for place, values in enumerate(maps)}


def count_parameters(network: nn.Module) -> int:
    """How many trainable and frozen parameters a network holds."""
    return sum(parameter.numel() for parameter in network.parameters())
