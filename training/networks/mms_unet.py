"""The network of Min-Max Similarity (arXiv 2203.15177): a Res2Net-101 U-Net.

Encoder: Res2Net-101 v1b 26w x 4s (timm `res2net101d`), conv1 and layers 1 to 3 only, strides 2 to 16, channels 64, 256,
512, 1024. Decoder, three times: bilinear x2, a block to the skip's channels, concatenation with the skip, a block;
a block is two (3x3 convolution, BatchNorm, LeakyReLU). A 1x1 head; a last bilinear x2. Deviations: every upsampling
goes to the exact size of the next finer map, so any input size works; convolutions before BatchNorm have no bias; there
are C >= 2 logits instead of one.
"""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as functional
from torch import Tensor, nn


def _block(channels: int, middle: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.LeakyReLU(inplace=True),
        nn.Conv2d(middle, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(inplace=True),
    )


class MmsUNet(nn.Module):
    """55.6 M parameters, 302 GFLOP (2 x MAC) at 512 x 288."""

    def __init__(self, classes: int = 2, encoder: str = "res2net101d") -> None:
        super().__init__()
        self.encoder = timm.create_model(
            encoder, features_only=True, out_indices=(0, 1, 2, 3), pretrained=False
        )
        *skips, channels = self.encoder.feature_info.channels()
        skips.reverse()
        widths = [channels, *skips]
        self.reduce = nn.ModuleList(
            _block(wide, wide, skip) for wide, skip in zip(widths, skips, strict=False)
        )
        self.merge = nn.ModuleList(_block(2 * skip, skip, skip) for skip in skips)
        self.classify = nn.Conv2d(skips[-1], classes, 1)

    def features(self, images_nchw: Tensor) -> list[Tensor]:
        """Encoder maps at strides 2, 4, 8 and 16: `(N, C_i, H / s_i, W / s_i)`."""
        maps: list[Tensor] = self.encoder(images_nchw)
        return maps

    def head(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits `(N, C, *size)` from the maps of `features`."""
        merged = features[-1]
        for reduce, merge, skip in zip(self.reduce, self.merge, reversed(features[:-1]), strict=True):
            merged = functional.interpolate(merged, skip.shape[2:], mode="bilinear", align_corners=False)
            merged = merge(torch.cat([skip, reduce(merged)], dim=1))
        return functional.interpolate(self.classify(merged), size, mode="bilinear", align_corners=False)

    def forward(self, images_nchw: Tensor) -> Tensor:
        height, width = images_nchw.shape[2:]
        return self.head(self.features(images_nchw), (height, width))
