"""Cross pseudo supervision: each network learns from the other's hard labels, and never from its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from service.errors import DataError
from tests.training.small_batches import NETWORK, make_batch
from training.losses.cutmix import draw_boxes
from training.losses.pseudo_label import PseudoLabels, make_pseudo_labels, pseudo_label_cross_entropy
from training.methods import build_method
from training.methods.cross_pseudo_supervision import CrossPseudoSupervision
from training.networks.views import MeanOfViews


def build(**options: object) -> CrossPseudoSupervision:
    torch.manual_seed(0)
    method = build_method("cross_pseudo_supervision", {"ramp_steps": 0, **options}, NETWORK, 2)
    assert isinstance(method, CrossPseudoSupervision)
    return method.train()


def gets_gradient(loss: Tensor, network: nn.Module) -> bool:
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_each_term_teaches_its_own_network_only() -> None:
    method = build()
    losses = method.losses(make_batch(method), 0)
    assert set(losses) == {
        f"{term}_{name}" for term in ("cross_entropy", "dice", "cross") for name in ("first", "second")
    }
    for term, loss in losses.items():
        assert gets_gradient(loss, method.first) == term.endswith("_first"), term
        assert gets_gradient(loss, method.second) == term.endswith("_second"), term


def test_the_networks_start_from_different_weights() -> None:
    method = build()
    pairs = zip(method.first.parameters(), method.second.parameters(), strict=True)
    assert any(not torch.equal(first, second) for first, second in pairs)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_cross_term_is_the_loss_against_the_labels_of_the_other(view: str) -> None:
    method = build(cutmix=0.0, learn_from=view, cross_weight=3.0)
    batch = make_batch(method)
    unlabeled = batch.unlabeled
    assert unlabeled is not None
    labels = make_pseudo_labels(method.second, unlabeled.weak_nchw, unlabeled.known_nhw)
    losses = method.losses(batch, 0)
    pictures, visible = unlabeled.strong_nchw[0], unlabeled.visible_nhw[0]
    if view == "weak":
        pictures, visible = unlabeled.weak_nchw, torch.ones_like(visible)
    logits = method.first(torch.cat([batch.images_nchw, pictures]))[len(batch.images_nchw) :]
    expected = 3 * pseudo_label_cross_entropy(logits, labels, visible)
    torch.testing.assert_close(losses["cross_first"], expected)
    assert not visible.all() or view == "weak"


def test_cutmix_moves_pictures_and_labels_and_what_is_hidden_together() -> None:
    method = build(cutmix=1.0).eval()  # with fixed BatchNorm two passes are alike
    batch = make_batch(method)
    unlabeled = batch.unlabeled
    assert unlabeled is not None
    torch.manual_seed(7)
    boxes = draw_boxes(len(unlabeled.weak_nchw), (64, 96), 1.0, torch.device("cpu"))
    labels = make_pseudo_labels(method.second, unlabeled.weak_nchw, unlabeled.known_nhw)
    pictures, visible = unlabeled.strong_nchw[0].clone(), unlabeled.visible_nhw[0].clone()
    mixed = PseudoLabels(*(values.clone() for values in labels))
    for n in range(len(pictures)):
        inside = boxes[n]
        pictures[n][:, inside] = unlabeled.strong_nchw[0][n - 1][:, inside]
        visible[n][inside] = unlabeled.visible_nhw[0][n - 1][inside]
        for values, original in zip(mixed, labels, strict=True):
            values[n][inside] = original[n - 1][inside]
    expected = 1.5 * pseudo_label_cross_entropy(method.first(pictures), mixed, visible)
    torch.manual_seed(7)  # the same boxes again
    torch.testing.assert_close(method.losses(batch, 0)["cross_first"], expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(mixed.targets_nhw, labels.targets_nhw)


def test_the_cross_weight_is_ramped_up() -> None:
    method = build(ramp_steps=10, cutmix=0.0)
    batch = make_batch(method)
    method.eval()  # so that two passes are alike
    early, late = (method.losses(batch, step) for step in (0, 10))
    ratio = early["cross_first"] / late["cross_first"]
    assert float(ratio.detach()) == pytest.approx(math.exp(-5), rel=1e-4)
    assert float(early["dice_first"].detach()) == pytest.approx(float(late["dice_first"].detach()))


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_any_view_can_predict(decay: float) -> None:
    images = make_batch(build()).images_nchw
    for name in ("first", "second", "mean"):
        method = build(predict_with=name, average_decay=decay).eval()
        with torch.inference_mode():
            logits = {view: network(images) for view, network in method.views.items()}
            assert torch.equal(method.predictor(images), logits[name])
        mean = (logits["first"].softmax(dim=1) + logits["second"].softmax(dim=1)) / 2
        torch.testing.assert_close(logits["mean"].softmax(dim=1), mean)
        assert isinstance(method.predictor, MeanOfViews) == (name == "mean")


def test_an_unknown_view_is_an_error() -> None:
    with pytest.raises(DataError, match="predict_with"):
        build(predict_with="third")
