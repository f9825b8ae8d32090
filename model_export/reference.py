"""What a trained network gives, computed by torch: what everything exported from it is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_export.parity import Predict


def reference_predict(predictor: nn.Module, has_confidence: bool = False) -> Predict:
    """A network's outputs in torch, by the textbook and not by the exported form, which is under test."""
    mean, std = (
        torch.as_tensor(getattr(predictor, name)).float().view(1, 3, 1, 1) for name in ("mean", "std")
    )

    def predict(images_nhwc: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
        with torch.inference_mode():
            images_nchw = torch.from_numpy(images_nhwc).permute(0, 3, 1, 2).float() / 255
            logits_nchw = predictor((images_nchw - mean) / std)
            labels_nhw = logits_nchw.argmax(dim=1)
            probabilities_nhw = logits_nchw.softmax(dim=1).gather(1, labels_nhw[:, None])[:, 0]
        masks_nhw = labels_nhw.numpy().astype(np.uint8)
        if not has_confidence:
            return (masks_nhw,)
        return masks_nhw, np.rint(255 * probabilities_nhw.numpy()).astype(np.uint8)

    return predict
