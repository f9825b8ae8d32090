"""A tiny network and batches of drawn bars, shared by the tests of the methods."""

from __future__ import annotations

import torch
from torch import Tensor

from training.config import NetworkConfig
from training.method import Batch, Method, UnlabeledBatch

NETWORK = NetworkConfig(name="edge", options={"encoder": "test_efficientnet", "width": 16, "dropout": 0.0})


def make_batch(method: Method, *, size: tuple[int, int] = (64, 96), classes: int = 2, seed: int = 1) -> Batch:
    """Four labeled pictures of bars that are brighter the higher their class, and two unlabeled ones.

    Each has as many strong views as the method asks for: noise, and a corner that is hidden.
    """
    generator = torch.Generator().manual_seed(seed)
    images, targets = _draw_bars(4, size, classes, generator)
    weak, _ = _draw_bars(2, size, classes, generator)
    visible = torch.ones(2, *size, dtype=torch.bool)
    visible[:, : size[0] // 4, : size[1] // 3] = False
    strong = tuple(
        (weak + 0.3 * torch.randn(weak.shape, generator=generator)) * visible[:, None]
        for _ in range(method.strong_views)
    )
    known = torch.zeros(2, *size, dtype=torch.int64)
    height, width = size
    unmoved = torch.tensor([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height]]).repeat(2, 1, 1)
    unlabeled = UnlabeledBatch(weak, strong, (visible,) * method.strong_views, known, unmoved)
    return Batch(images, targets, unlabeled)


def _draw_bars(
    count: int, size: tuple[int, int], classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    height, width = size
    targets = torch.zeros(count, height, width, dtype=torch.int64)
    for index in range(count):
        for class_id in range(1, classes):
            top = int(torch.randint(0, height // 2, (1,), generator=generator))
            left = int(torch.randint(0, width // 2, (1,), generator=generator))
            if (index + class_id) % 2:
                targets[index, top : top + height // 3] = class_id
            else:
                targets[index, :, left : left + width // 4] = class_id
    noise = torch.randn(count, 3, height, width, generator=generator)
    return 0.5 * noise + 2 * targets[:, None], targets
