"""The exported form of a network: pictures as bytes in, class ids out, every number between in the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BYTE_MAX = 255.0


class Servable(nn.Module):
    """uint8 RGB `(N, H, W, 3)` to uint8 class ids `(N, H, W)`, and with `has_confidence` the uint8 confidence of each.

    `predictor` gives logits `(N, C, H, W)`, C >= 2, for normalised float pictures `(N, 3, H, W)`, and holds
    `mean` and `std`, three values each, for pictures scaled to 0..1. It must be in eval mode.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, predictor: nn.Module, has_confidence: bool = False) -> None:
        super().__init__()
        self.predictor = predictor
        self.has_confidence = has_confidence
        mean, std = (torch.as_tensor(getattr(predictor, name)).double().flatten() for name in ("mean", "std"))
        # (x / 255 - mean) / std as one multiplication and one addition for each channel.
        self.register_buffer("scale", (1.0 / (BYTE_MAX * std)).float().view(1, 3, 1, 1))
        self.register_buffer("offset", (-mean / std).float().view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        images_nchw = image.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.offset
        logits_nchw = self.predictor(images_nchw)
        masks_nhw = label(logits_nchw)
        return (masks_nhw, rate(logits_nchw)) if self.has_confidence else masks_nhw


def label(logits_nchw: Tensor) -> Tensor:
    """The class of the largest logit, the lowest id where several are equal, as uint8 `(N, H, W)`.

    It goes through float because TensorRT has no cast from integers to uint8.
    """
    # Of two classes a comparison finds the same one, ties included, without a reduction to 64-bit indices.
    is_binary = logits_nchw.shape[1] == 2
    winner = logits_nchw[:, 1] > logits_nchw[:, 0] if is_binary else logits_nchw.argmax(dim=1)
    return winner.to(torch.float32).to(torch.uint8)


def rate(logits_nchw: Tensor) -> Tensor:
    """The confidence of each pixel's label, uint8 `(N, H, W)`: 255 times the softmax of its largest logit, rounded.

    With C classes it lies between 255 / C and 255, so for two never below 128. For the mean of two views the
    probability is the mean of both, which their disagreement lowers.
    """
    # Of two classes the larger softmax is a sigmoid, without the reductions that take ten times as long on a CPU.
    is_binary = logits_nchw.shape[1] == 2
    probability_nhw = (
        (logits_nchw[:, 1] - logits_nchw[:, 0]).abs().sigmoid()
        if is_binary
        else logits_nchw.softmax(dim=1).amax(dim=1)
    )
    return (probability_nhw * BYTE_MAX).round().to(torch.uint8)
