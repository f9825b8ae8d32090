"""Predicting with a network of torch, as the service's backends do with a bundle."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from training.checkpoint import normalise
from training.evaluate import Predict


def make_predict(predictor: nn.Module, device: torch.device) -> Predict:
    """A function from uint8 RGB `(N, H, W, 3)` to uint8 class ids `(N, H, W)`, in eval mode and float32."""

    @torch.inference_mode()
    def predict(images_nhwc: np.ndarray) -> np.ndarray:
        was_training = predictor.training
        predictor.eval()
        images = normalise(torch.from_numpy(images_nhwc).to(device).permute(0, 3, 1, 2))
        masks = predictor(images).argmax(dim=1).to(torch.uint8).cpu().numpy()
        predictor.train(was_training)
        return masks

    return predict
