"""The exported form of a network labels as the textbook does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_export.parity import measure_agreement, require_agreement
from model_export.pictures import draw_picture, draw_pictures
from model_export.reference import reference_predict
from model_export.servable import Servable, label
from service.contract.model_card import InputSize
from service.errors import BundleError

SIZE = InputSize(height=48, width=80)


class Projection(nn.Module):
    """Logits that are a fixed linear function of each pixel: what a network sees, laid open."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(classes)
        self.mix = nn.Conv2d(3, classes, 1)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]))

    def forward(self, images_nchw: Tensor) -> Tensor:
        return self.mix(images_nchw)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_label_is_the_first_of_the_largest_logits(classes: int) -> None:
    # Few distinct values, so that many pixels are ties.
    logits_nchw = torch.randint(-2, 3, (2, classes, 40, 40), generator=torch.manual_seed(classes)).float()
    labels_nhw = label(logits_nchw)
    assert labels_nhw.dtype == torch.uint8
    assert np.array_equal(labels_nhw.numpy(), logits_nchw.numpy().argmax(axis=1))


@pytest.mark.parametrize("classes", [2, 4])
def test_servable_agrees_with_a_network_fed_by_the_textbook(classes: int) -> None:
    predictor = Projection(classes).eval()
    images_nhwc = np.stack(list(draw_pictures(SIZE, 3)))
    with torch.inference_mode():
        served_nhw = Servable(predictor)(torch.from_numpy(images_nhwc)).numpy()
    assert served_nhw.shape == (3, 48, 80)
    assert served_nhw.dtype == np.uint8
    assert len(np.unique(served_nhw)) > 1
    assert np.mean(served_nhw == reference_predict(predictor)(images_nhwc)[0]) > 0.999


def test_drawn_pictures_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    pictures = list(draw_pictures(SIZE, 4))
    assert np.array_equal(pictures[2], draw_picture(SIZE, 2))
    assert all(not np.array_equal(pictures[0], other) for other in pictures[1:])
    assert pictures[0].shape == (48, 80, 3)
    assert pictures[0].dtype == np.uint8
    assert pictures[0].flags.c_contiguous


def test_agreement_counts_equal_labels_and_names_the_worst_frame() -> None:
    shares = iter([1.0, 0.5, 1.0, 1.0])

    def candidate(images_nhwc: np.ndarray) -> tuple[np.ndarray]:
        masks_nhw = np.zeros(images_nhwc.shape[:3], np.uint8)
        masks_nhw[:, int(48 * next(shares)) :] = 1
        return (masks_nhw,)

    pictures = draw_pictures(SIZE, 4)
    agreement = measure_agreement(lambda i: (np.zeros(i.shape[:3], np.uint8),), candidate, pictures)
    assert (agreement.frames, agreement.labels_equal, agreement.worst) == (4, 0.875, 0.5)
    with pytest.raises(BundleError, match=r"87\.5"):
        require_agreement(agreement, "onnxruntime-cpu", "float32")


def test_agreement_on_no_frames_proves_nothing() -> None:
    predict = reference_predict(Projection(2))
    with pytest.raises(BundleError, match="no picture"):
        measure_agreement(predict, predict, [])
