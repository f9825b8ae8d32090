"""What is particular to Min-Max Similarity: its halves, its heads, its terms and its views."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from service.errors import DataError
from tests.training.small_batches import NETWORK, make_batch
from training.losses.consistency import CONSISTENCIES
from training.losses.contrast import pull_same_positions, push_all_apart
from training.losses.structure import class_log_odds, structure_loss
from training.method import Batch
from training.methods import build_method
from training.methods import min_max_similarity as module
from training.methods.min_max_similarity import MinMaxSimilarity
from training.networks.contrast_heads import Classifier, Projector

WEIGHTS = ("supervised_weight", "min_weight", "consistency_weight", "max_weight")


def build(**options: Any) -> MinMaxSimilarity:
    torch.manual_seed(0)
    method = build_method("min_max_similarity", {"ramp_steps": 0, **options}, NETWORK, 2).train()
    assert isinstance(method, MinMaxSimilarity)
    return method


def only(term: str, **options: Any) -> MinMaxSimilarity:
    return build(**{weight: float(weight == term) for weight in WEIGHTS}, **options)


def gradients(method: MinMaxSimilarity, loss: Tensor, network: str) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(method.networks[network].parameters()), retain_graph=True))


def test_each_network_learns_from_its_own_half_of_the_labels() -> None:
    method = only("supervised_weight")
    batch = make_batch(method)
    before = {name: gradients(method, method.losses(batch, 0)["structure"], name) for name in method.networks}
    targets = batch.targets_nhw.clone()
    targets[2:] = 1 - targets[2:]
    changed = Batch(batch.images_nchw, targets, batch.unlabeled)
    after = {
        name: gradients(method, method.losses(changed, 0)["structure"], name) for name in method.networks
    }
    torch.testing.assert_close(before["first"], after["first"], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(*pair) for pair in zip(before["second"], after["second"], strict=True))


@pytest.mark.parametrize(("labels", "parts"), [("disjoint", 2), ("shared", 1)])
def test_the_labeled_frames_are_cut_in_two_unless_shared(labels: str, parts: int) -> None:
    assert build(labels=labels).labeled_parts == parts


def test_the_networks_start_from_different_random_weights() -> None:
    first, second = build().networks.values()
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("consistency", ["squared", "cross_entropy"])
def test_the_terms_are_those_of_the_equation_with_their_weights(consistency: str) -> None:
    weights = dict(zip(WEIGHTS, (0.5, 0.2, 0.3, 0.7), strict=True))
    method = build(**weights, consistency=consistency, temperature=0.5)
    batch = make_batch(method, size=(32, 32))  # fewer positions than are drawn, so all of them
    pictures, visible = batch.unlabeled.strong_nchw[0], batch.unlabeled.visible_nhw[0]
    first = method.first(torch.cat([batch.images_nchw[:2], pictures]))
    second = method.second(torch.cat([batch.images_nchw[2:], pictures]))
    structure = structure_loss(first[:2], batch.targets_nhw[:2]) + structure_loss(
        second[:2], batch.targets_nhw[2:]
    )
    odds = [class_log_odds(logits) for logits in (first, second)]
    classified = [head(o[:2]).flatten(2).mT for head, o in zip(method.classifiers, odds, strict=True)]
    projected = [head(o[2:]).flatten(2).mT for head, o in zip(method.projectors, odds, strict=True)]
    distance = CONSISTENCIES[consistency]
    apart = distance(first[2:], second[2:].softmax(1), visible) + distance(
        second[2:], first[2:].softmax(1), visible
    )
    losses = method.losses(batch, 0)
    assert set(losses) == {"structure", "min", "consistency", "max"}
    torch.testing.assert_close(losses["structure"], 0.5 * structure)
    torch.testing.assert_close(losses["min"], 0.2 * push_all_apart(*classified, 0.5, "l2"))
    torch.testing.assert_close(losses["consistency"], 0.3 * apart)
    torch.testing.assert_close(losses["max"], 0.7 * pull_same_positions(*projected, 0.5, "l2", True))


def test_where_instruments_were_pasted_both_networks_are_told_their_class() -> None:
    method = only("consistency_weight")
    batch = make_batch(method)
    batch.unlabeled.known_nhw[:, 40:50] = 1
    pictures, visible = batch.unlabeled.strong_nchw[0], batch.unlabeled.visible_nhw[0]
    logits = [
        method.networks[name](torch.cat([half, pictures]))[2:]
        for name, half in zip(method.networks, batch.images_nchw.split(2), strict=True)
    ]
    expected = 0.0
    for own, other in (logits, reversed(logits)):
        taught = other.softmax(dim=1)
        taught[:, 0, 40:50], taught[:, 1, 40:50] = 0, 1
        expected += float(CONSISTENCIES["cross_entropy"](own, taught, visible).detach())
    assert float(method.losses(batch, 0)["consistency"].detach()) == pytest.approx(expected, rel=1e-5)


def test_only_the_unlabeled_terms_are_ramped_up() -> None:
    start, later = (
        build(ramp_steps=10, positions=4096).losses(make_batch(build()), step) for step in (0, 10)
    )
    for term, factor in {"structure": 1, "min": 1, "consistency": math.exp(-5), "max": math.exp(-5)}.items():
        assert float(start[term].detach()) == pytest.approx(float(later[term].detach()) * factor, rel=1e-3)


def test_frozen_heads_pass_the_gradient_on_but_stay_as_they_are() -> None:
    method = build(heads="frozen")
    losses = method.losses(make_batch(method), 0)
    assert not any(
        p.requires_grad for head in (method.classifiers, method.projectors) for p in head.parameters()
    )
    for term in ("min", "max"):
        for name in method.networks:
            assert any(g.abs().sum() > 0 for g in gradients(method, losses[term], name)), (term, name)


def test_heads_are_trained_by_default_and_absent_without_their_term() -> None:
    method = build()
    assert all(p.requires_grad for head in (method.classifiers, method.projectors) for p in head.parameters())
    method = only("supervised_weight")
    assert [*method.classifiers.parameters(), *method.projectors.parameters()] == []


def test_heads_have_the_papers_sizes() -> None:
    scores = torch.randn(2, 3, 32, 64)
    assert Projector(3)(scores).shape == (2, 16, 8, 16)
    assert Classifier(3)(scores).shape == (2, 32, 4, 8)


@pytest.mark.parametrize("view", ["strong", "weak"])
def test_both_networks_see_the_chosen_view_of_the_unlabeled_picture(view: str) -> None:
    method = build(unlabeled_view=view)
    batch = make_batch(method)
    expected = batch.unlabeled.strong_nchw[0] if view == "strong" else batch.unlabeled.weak_nchw
    seen: list[Tensor] = []
    for network in method.networks.values():
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.losses(batch, 0)
    assert len(seen) == 2
    assert all(torch.equal(images[2:], expected) for images in seen)


def test_the_compared_positions_are_bounded_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, ...]] = []

    def recording(first: Tensor, *rest: Any) -> Tensor:
        compared.append(tuple(first.shape))
        return pull_same_positions(first, *rest)

    monkeypatch.setattr(module, "pull_same_positions", recording)
    method = build(positions=20)
    for size in ((64, 96), (128, 160)):
        batch = make_batch(method, size=size)
        method.losses(batch, 0)
    assert compared == [(len(batch.unlabeled.weak_nchw), 20, 16)] * 2


def test_an_odd_batch_gives_the_first_network_one_more_and_one_picture_is_refused() -> None:
    method = build()
    batch = make_batch(method)
    odd = Batch(batch.images_nchw[:3], batch.targets_nhw[:3], batch.unlabeled)
    assert all(torch.isfinite(loss) for loss in method.losses(odd, 0).values())
    with pytest.raises(DataError, match="batch_size = 2"):
        method.losses(Batch(batch.images_nchw[:1], batch.targets_nhw[:1], batch.unlabeled), 0)


def test_every_view_can_predict_and_the_mean_is_of_the_two() -> None:
    method = build(average_decay=0, predict_with="mean").eval()
    images = make_batch(method).images_nchw
    with torch.inference_mode():
        first, second, mean = (method.views[name](images).softmax(1) for name in ("first", "second", "mean"))
        predicted = method.predictor(images).softmax(1)
    torch.testing.assert_close(mean, (first + second) / 2)
    torch.testing.assert_close(predicted, mean)
    assert method.views["first"] is method.first
    averaged = build(predict_with="second")
    assert averaged.predictor is averaged.second_average.average


@pytest.mark.parametrize("consistency", ["squared", "cross_entropy"])
def test_averages_may_teach_instead_and_see_the_weak_view(consistency: str) -> None:
    method = only("consistency_weight", consistency=consistency, teachers="averages", average_decay=0.5)
    with torch.no_grad():
        for parameter in method.first.parameters():
            parameter.mul_(1.1)  # so that the networks are not their averages
    batch = make_batch(method)
    unlabeled = batch.unlabeled
    pictures, visible = unlabeled.strong_nchw[0], unlabeled.visible_nhw[0]
    first = method.first(torch.cat([batch.images_nchw[:2], pictures]))[2:]
    second = method.second(torch.cat([batch.images_nchw[2:], pictures]))[2:]
    by_first, by_second = (average.average(unlabeled.weak_nchw).softmax(1) for average in method.averages)
    distance = CONSISTENCIES[consistency]
    expected = distance(first, by_second, visible) + distance(second, by_first, visible)
    torch.testing.assert_close(method.losses(batch, 0)["consistency"], expected, rtol=1e-4, atol=1e-6)


def test_averages_cannot_teach_where_there_are_none() -> None:
    with pytest.raises(DataError, match="needs an average_decay"):
        build(teachers="averages", average_decay=0.0)
