"""What networks say of their own answer: the confidence of each pixel's class, and where two views disagree."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.checkpoint import Checkpoint, normalise
from training.networks.views import MeanOfViews
from training.reliability import Prediction, PredictUncertain


def find_pair(checkpoint: Checkpoint) -> MeanOfViews | None:
    """The two networks of a checkpoint's method, in eval mode; None where it has only one."""
    views = checkpoint.build_method().eval().views.values()
    return next((view for view in views if isinstance(view, MeanOfViews)), None)


def make_uncertain_predict(
    predictor: nn.Module, pair: MeanOfViews | None, device: torch.device
) -> PredictUncertain:
    """A function from uint8 RGB `(N, H, W, 3)` to classes, confidence and, with `pair`, disagreement, all uint8.

    `predictor` and `pair` are in eval mode and float32, and are moved to `device`.
    """
    predictor.to(device)
    if pair is not None:
        pair.to(device)

    @torch.inference_mode()
    def predict(images_nhwc: NDArray[np.uint8]) -> Prediction:
        images_nchw = normalise(torch.from_numpy(images_nhwc).to(device).permute(0, 3, 1, 2))
        probabilities_nhw, masks_nhw = predictor(images_nchw).softmax(dim=1).max(dim=1)
        disagreements_nhw = None if pair is None else _to_levels(pair.disagreement(images_nchw))
        return Prediction(
            masks_nhw.to(torch.uint8).cpu().numpy(), _to_levels(probabilities_nhw), disagreements_nhw
        )

    return predict


def _to_levels(shares_nhw: Tensor) -> NDArray[np.uint8]:
    """0 to 1 as 0 to 255, rounded as a bundle's second output is."""
    return (255 * shares_nhw.float()).round().to(torch.uint8).cpu().numpy()
