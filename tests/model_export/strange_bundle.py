"""A bundle of an edge network with random weights and a BatchNorm in which no two channels are alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model_export.bundle import write_bundle
from model_export.card import Description
from model_export.pictures import draw_pictures
from service.contract.bundle import Bundle
from service.contract.geometry import Image
from service.contract.model_card import ClassInfo, DataSource, InputSize
from training.checkpoint import Checkpoint, normalise
from training.config import DataConfig, NetworkConfig, Recipe
from training.methods import build_method

SIZE = InputSize(height=96, width=160)
NETWORK = NetworkConfig(options={"encoder": "mobilenetv4_conv_small_050", "width": 16, "finest_stride": 4})
CLASSES = tuple(ClassInfo(id=n, name=str(n), colour=(0, 0, 0)) for n in range(3))
SOURCE = DataSource(name="drawn", licence="Apache-2.0", frames=4, use="training, labeled")


def write_strange_bundle(folder: Path, classes: int, **method: Any) -> Bundle:
    """Export a network of that many classes; `method` is the recipe's table, by default one network and no average."""
    checkpoint = make_checkpoint(method or {"name": "supervised", "average_decay": 0}, CLASSES[:classes])
    return write_bundle(checkpoint, folder, Description(name="strange"), draw_pictures(SIZE, 2))[0]


def make_checkpoint(method_table: dict[str, Any], classes: tuple[ClassInfo, ...]) -> Checkpoint:
    data = DataConfig(source="folder:frames", card=SOURCE)
    recipe = Recipe(
        name="strange",
        labeled=(data,),
        validation=(data,),
        input_size=SIZE,
        network=NETWORK,
        method=method_table,
        classes=classes,
    )
    torch.manual_seed(4)
    method = build_method(recipe.method_name, recipe.method_options, recipe.network, len(classes))
    for network in method.networks.values():
        upset(network)
    state = {"method": method.state_dict()}
    return Checkpoint(recipe, "surgseg-train run strange", "0" * 40, "1" * 64, 7, 0.25, state)


@torch.no_grad()
def upset(network: nn.Module) -> None:
    """Factors of both signs, offsets, and statistics near those of drawn pictures but not equal to them."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5).mul_(torch.randn_like(norm.weight).sign())
        norm.bias.normal_(0, 0.3)
        norm.momentum = 1.0
    network.train()(normalise(to_batch(list(draw_pictures(SIZE, 4)))))
    for norm in norms:
        norm.running_mean.add_(torch.randn_like(norm.running_mean) * norm.running_var.sqrt() * 0.3)
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.5, 2.0))


def to_batch(images: Sequence[Image]) -> torch.Tensor:
    """uint8 `(N, 3, H, W)`."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
