"""Segmentation networks, each a table entry: name -> "module:Class".

A network gives logits `(N, C, H, W)` for normalised pictures `(N, 3, H, W)`; `features(images)` are the encoder's
feature maps from fine to coarse, `head(features, size)` turns them into logits, `forward` is both.
"""

from __future__ import annotations

import difflib
import importlib

from torch import nn

from service.errors import DataError

NETWORKS = {
    "edge": "training.networks.edge:EdgeNetwork",
    "mms_unet": "training.networks.mms_unet:MmsUNet",
}


def build_network(name: str, classes: int, options: dict[str, object] | None = None) -> nn.Module:
    """A freshly initialised network. `options` are the keyword arguments of its class."""
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Check [network] name in the recipe."
        raise DataError(f"There is no network {name!r}.", f"one of {', '.join(NETWORKS)}", hint)
    module, class_name = NETWORKS[name].split(":")
    network: nn.Module = getattr(importlib.import_module(module), class_name)(
        classes=classes, **(options or {})
    )
    return network


def count_parameters(network: nn.Module) -> int:
    """How many trainable and frozen parameters a network holds."""
    return sum(parameter.numel() for parameter in network.parameters())
