"""The network for machines without a GPU: a small timm encoder and a light feature-pyramid decoder."""

from __future__ import annotations

import timm
import torch.nn.functional as functional
from torch import Tensor, nn


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 then pointwise convolution, each with BatchNorm, ReLU at the end."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class EdgeNetwork(nn.Module):
    """Encoder features at strides 2 to 32, merged from coarse to fine, logits at stride 2 or 4 brought to full size.

    The decoder adds each upsampled coarser map to a 1x1 projection of the finer one, as a feature pyramid does, but
    with separable convolutions, and its width is halved at stride 2, where a pixel costs most.
    """

    def __init__(
        self,
        classes: int = 2,
        encoder: str = "mobilenetv4_conv_small",
        width: int = 64,
        finest_stride: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = timm.create_model(encoder, features_only=True, pretrained=False)
        info = self.encoder.feature_info
        used = [(c, s) for c, s in zip(info.channels(), info.reduction(), strict=True) if s >= finest_stride]
        self._levels = len(used)
        widths = [width if stride > 2 else width // 2 for _, stride in used]
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, w, 1, bias=False), nn.BatchNorm2d(w))
            for (channels, _), w in zip(used, widths, strict=True)
        )
        coarser = [*widths[1:], widths[-1]]
        self.merge = nn.ModuleList(SeparableConv(w, finer) for w, finer in zip(coarser, widths, strict=True))
        self.smooth = SeparableConv(widths[0], widths[0])
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(widths[0], classes, 1)

    def features(self, images_nchw: Tensor) -> list[Tensor]:
        """Encoder maps, fine to coarse: `(N, C_i, H / s_i, W / s_i)`."""
        maps: list[Tensor] = self.encoder(images_nchw)
        return maps[-self._levels :]

    def head(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits `(N, C, *size)` from the maps of `features`."""
        merged = self.merge[-1](functional.relu(self.lateral[-1](features[-1])))
        for level in range(len(features) - 2, -1, -1):
            finer = self.lateral[level](features[level])
            merged = self.merge[level](merged)
            merged = functional.interpolate(merged, finer.shape[2:], mode="bilinear", align_corners=False)
            merged = functional.relu(merged + finer)
        logits = self.classify(self.dropout(self.smooth(merged)))
        return functional.interpolate(logits, size, mode="bilinear", align_corners=False)

    def forward(self, images_nchw: Tensor) -> Tensor:
        height, width = images_nchw.shape[2:]
        return self.head(self.features(images_nchw), (height, width))
