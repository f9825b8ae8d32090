"""Heads that only contrast needs.

`Projector` and `Classifier` are those of Min-Max Similarity (arXiv 2203.15177), which describe the positions of a score
map; `VectorProjector` describes vectors of an encoder.
"""

from __future__ import annotations

from torch import nn


class Projector(nn.Sequential):
    """Score maps `(N, S, H, W)` to 16-dimensional vectors at a quarter of the size."""

    def __init__(self, scores: int) -> None:
        super().__init__(*_halve(scores, 8), *_halve(8, 16), nn.Conv2d(16, 16, 1))


class Classifier(nn.Sequential):
    """Score maps `(N, S, H, W)` to 32-dimensional vectors, none negative, at an eighth of the size."""

    def __init__(self, scores: int) -> None:
        super().__init__(*_halve(scores, 8), *_halve(8, 16), *_halve(16, 32))


class VectorProjector(nn.Sequential):
    """Vectors `(V, C)` to `(V, width)`: two layers, as in MoCo v2 (Chen et al., 2020)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, width))


def _halve(channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
