"""UniMatch: which pixels of which streams are learned from, and what the streams are."""

from __future__ import annotations

import pytest
import torch

from tests.training.small_batches import NETWORK, make_batch
from training.losses.pseudo_label import make_pseudo_labels, pseudo_label_cross_entropy
from training.methods import build_method
from training.methods.unimatch import UniMatch


def build(**options: object) -> UniMatch:
    torch.manual_seed(0)
    method = build_method("unimatch", {"threshold": 0.0, **options}, NETWORK, 2)
    assert isinstance(method, UniMatch)
    return method.train()


def test_the_streams_weigh_as_in_the_paper() -> None:
    method = build()
    assert method.strong_views == 2
    unlabeled = make_batch(method).unlabeled
    assert unlabeled is not None
    weights = {stream.name: stream.weight for stream in method._streams(unlabeled)}
    assert weights == {"feature": 0.5, "strong_1": 0.25, "strong_2": 0.25}


def test_the_terms_equal_separate_passes_through_the_network() -> None:
    method = build(cutmix=0.0, feature_dropout=0.0).eval()  # without noise and with fixed BatchNorm
    batch = make_batch(method)
    unlabeled = batch.unlabeled
    assert unlabeled is not None
    losses = method.losses(batch, 0)
    labels = make_pseudo_labels(method.network, unlabeled.weak_nchw, unlabeled.known_nhw)
    expected = {"feature": 0.5 * pseudo_label_cross_entropy(method.network(unlabeled.weak_nchw), labels)}
    for number, (pictures, visible) in enumerate(
        zip(unlabeled.strong_nchw, unlabeled.visible_nhw, strict=True), start=1
    ):
        loss = pseudo_label_cross_entropy(method.network(pictures), labels, visible)
        expected[f"strong_{number}"] = 0.25 * loss
    for term, loss in expected.items():
        torch.testing.assert_close(losses[term], loss, rtol=1e-4, atol=1e-6, msg=term)


def test_an_unsure_network_learns_from_labels_alone() -> None:
    method = build(threshold=1.0)
    losses = method.losses(make_batch(method), 0)
    assert {term for term, loss in losses.items() if float(loss.detach()) == 0} == {
        "feature",
        "strong_1",
        "strong_2",
    }
    torch.stack([losses[term] for term in ("feature", "strong_1", "strong_2")]).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())


def test_the_default_threshold_is_that_of_the_paper() -> None:
    assert build_method("unimatch", {}, NETWORK, 2).options.threshold == 0.95


def test_the_feature_stream_alone_loses_channels() -> None:
    method = build(cutmix=0.0, feature_dropout=0.9).eval()
    batch = make_batch(method)
    assert batch.unlabeled is not None
    with torch.inference_mode():
        clean = method.network(batch.images_nchw)
        weak = method.network(batch.unlabeled.weak_nchw)
        labeled, feature, *strong = method._predict(batch.images_nchw, method._streams(batch.unlabeled))
        for logits, pictures in zip(strong, batch.unlabeled.strong_nchw, strict=True):
            torch.testing.assert_close(logits, method.network(pictures), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(labeled, clean, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(feature, weak, atol=1e-2)


def test_each_strong_view_has_boxes_of_its_own() -> None:
    method = build(cutmix=1.0)
    unlabeled = make_batch(method).unlabeled
    assert unlabeled is not None
    unlabeled.strong_nchw = (unlabeled.strong_nchw[0],) * 2
    torch.manual_seed(4)
    _, first, second = method._streams(unlabeled)
    assert not torch.equal(first.images_nchw, second.images_nchw)
    for stream in (first, second):
        source = unlabeled.strong_nchw[0]
        moved = (stream.images_nchw != source).any(dim=1)
        assert moved.any()
        assert torch.equal(
            stream.images_nchw[~moved.unsqueeze(1).expand_as(source)],
            source[~moved[:, None].expand_as(source)],
        )


@pytest.mark.parametrize(
    ("option", "gone"), [("strong_weight", {"strong_1", "strong_2"}), ("feature_weight", {"feature"})]
)
def test_a_stream_without_weight_never_reaches_the_network(
    option: str, gone: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(**{option: 0.0})
    batch = make_batch(method)
    seen = []
    original = method.network.features
    monkeypatch.setattr(
        method.network, "features", lambda images: seen.append(len(images)) or original(images)
    )
    losses = method.losses(batch, 0)
    assert not gone & set(losses)
    assert seen[-1] == len(batch.images_nchw) + sum(2 for _ in {"feature", "strong_1", "strong_2"} - gone)


def test_hidden_pixels_of_a_strong_view_teach_nothing() -> None:
    method = build(cutmix=0.0)
    batch = make_batch(method)
    assert batch.unlabeled is not None
    batch.unlabeled.visible_nhw = tuple(torch.zeros_like(view) for view in batch.unlabeled.visible_nhw)
    losses = method.losses(batch, 0)
    assert float(losses["strong_1"].detach()) == float(losses["strong_2"].detach()) == 0
    assert float(losses["feature"].detach()) > 0
