"""The contract that every training method keeps, over the table of methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.errors import DataError
from tests.training.small_batches import NETWORK, make_batch
from tests.training.small_runs import TEACHER_TABLE, small_recipe, write_teacher
from training.checkpoint import load_checkpoint
from training.ema import WeightAverage
from training.method import Method
from training.methods import METHODS, build_method
from training.trainer import LAST, Trainer, make_optimizer

# What makes every term of a network with random weights count, from the first step on.
LIVE_OPTIONS: dict[str, dict[str, Any]] = {
    "mean_teacher": {"ramp_steps": 0},
    "cross_pseudo_supervision": {"ramp_steps": 0},
    "min_max_similarity": {"ramp_steps": 0},
    "unimatch": {"threshold": 0.0},
    "self_ensembling_contrastive": {  # a random teacher sees one class alone, so keys of labeled pictures too
        "ramp_steps": 0,
        "confidence": 0.0,
        "keys_from": "both",
        "consistency_weight": 0.1,
    },
    "distillation": {"distillation_weight": 0.1},  # its teacher here has random weights and knows nothing
}


def build(name: str, classes: int = 2, **options: Any) -> Method:
    torch.manual_seed(0)
    return build_method(name, {**LIVE_OPTIONS.get(name, {}), **options}, NETWORK, classes).train()


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def averages_of(method: Method) -> list[WeightAverage]:
    return [module for module in method.modules() if isinstance(module, WeightAverage)]


def weight_options(name: str) -> list[str]:
    fields = build(name).options_class.model_fields
    return [field for field in fields if field.endswith("_weight")]


def dice_of(method: Method, images_nchw: Tensor, targets_nhw: Tensor) -> float:
    with torch.inference_mode():
        predicted = method.predictor.eval()(images_nchw).argmax(dim=1)
    shared = 2 * ((predicted == 1) & (targets_nhw == 1)).sum()
    return float(shared / ((predicted == 1).sum() + (targets_nhw == 1).sum()))


def method_override(name: str, folder: Path) -> str:
    """The recipe's method; where it needs a teacher, with the checkpoint of one."""
    if name != "distillation":
        return f'method.name="{name}"'
    teacher = write_teacher(folder)
    return f'method={{ name = "distillation", teacher = {TEACHER_TABLE}, teacher_from = "{teacher}" }}'


every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_each_term_is_finite_and_has_a_gradient(name: str) -> None:
    method = build(name)
    losses = method.losses(make_batch(method), 0)
    trained = [p for p in method.parameters() if p.requires_grad]
    assert losses
    for term, loss in losses.items():
        assert loss.ndim == 0 and torch.isfinite(loss), term
        gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients), term


@every_method
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_unfrozen_parameter_gets_a_finite_gradient(name: str, precision: torch.dtype) -> None:
    method = build(name)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        losses = method.losses(make_batch(method), 0)
    total(losses).backward()
    unfrozen = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    assert [name for name, gradient in unfrozen.items() if gradient is None] == []
    assert [name for name, gradient in unfrozen.items() if not torch.isfinite(gradient).all()] == []


@every_method
def test_averages_are_frozen_and_follow_after_the_step(name: str) -> None:
    method = build(name)
    total(method.losses(make_batch(method), 0)).backward()
    averages = averages_of(method)
    assert averages, "every method predicts with averaged weights by default"
    for average in averages:
        assert not average.training and not average.average.training
        assert all(not p.requires_grad and p.grad is None for p in average.parameters())
    assert {id(average) for average in method.averages} <= {id(average) for average in averages}
    before = [next(average.parameters()).clone() for average in averages]
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1.0 if parameter.requires_grad else 0.0)
    method.after_step(0)
    for average, old in zip(averages, before, strict=True):
        assert (next(average.parameters()) - old).abs().min() > 0


@every_method
def test_the_optimiser_takes_exactly_the_unfrozen_parameters(name: str, tmp_path: Path) -> None:
    method = build(name)
    optimizer = make_optimizer(method, small_recipe(tmp_path).optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in method.parameters() if p.requires_grad}


@every_method
def test_a_term_without_weight_is_left_out_and_the_others_stay(name: str) -> None:
    method = build(name)
    everything = set(method.losses(make_batch(method), 0))
    removed: set[str] = set()
    for option in weight_options(name):
        method = build(name, **{option: 0.0})
        terms = set(method.losses(make_batch(method), 0))
        assert terms < everything, option
        assert not (everything - terms) & removed, option
        removed |= everything - terms
    assert removed == everything


@every_method
def test_it_learns_a_tiny_set(name: str, tmp_path: Path) -> None:
    method = build(name)
    batch = make_batch(method)
    before = dice_of(method, batch.images_nchw, batch.targets_nhw)
    first, last = float(total(method.train().losses(batch, 0)).detach()), 0.0
    optimizer = make_optimizer(method, small_recipe(tmp_path, "optimizer.learning_rate=5e-3").optimizer)
    for step in range(40):
        loss = total(method.losses(batch, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step)
        last = float(loss.detach())
    after = dice_of(method, batch.images_nchw, batch.targets_nhw)
    assert last < 0.7 * first
    assert before < 0.5 and after > 0.75


@every_method
def test_its_state_restores_every_view(name: str) -> None:
    method = build(name)
    torch.manual_seed(1)
    copy = type(method)(method.options, NETWORK, classes=2)
    copy.load_state_dict(method.state_dict())
    images = make_batch(method).images_nchw
    with torch.inference_mode():
        expected = {view: network.eval()(images) for view, network in method.views.items()}
        for view, network in copy.views.items():
            torch.testing.assert_close(network.eval()(images), expected[view], rtol=0, atol=0, msg=view)
        predicted = method.predictor.eval()(images)
    assert any(torch.equal(predicted, logits) for logits in expected.values())


@every_method
def test_it_starts_from_given_weights(name: str) -> None:
    method, donor = build(name), build("supervised")
    with torch.no_grad():
        for parameter in donor.network.parameters():
            parameter.fill_(0.25)
    assert method.start_from(donor.network.state_dict()) == len(donor.network.state_dict())
    for networks in (list(method.networks.values()), [average.average for average in method.averages]):
        for place, network in enumerate(networks):
            assert all((p == 0.25).all() for p in network.encoder.parameters())
            rest = [p for name, p in network.named_parameters() if not name.startswith("encoder.")]
            assert all((p == 0.25).all() for p in rest) == (place == 0)


@every_method
@pytest.mark.parametrize("size", [(64, 64), (80, 56), (70, 101)])
def test_it_takes_any_picture_size_and_three_classes(name: str, size: tuple[int, int]) -> None:
    method = build(name, classes=3)
    batch = make_batch(method, size=size, classes=3)
    losses = method.losses(batch, 0)
    total(losses).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.inference_mode():
        for view, network in method.views.items():
            assert network.eval()(batch.images_nchw).shape == (len(batch.images_nchw), 3, *size), view


@every_method
def test_without_the_unlabeled_pictures_it_needs_the_error_says_so(name: str) -> None:
    method = build(name)
    batch = make_batch(method)
    batch.unlabeled = None
    if method.strong_views == 0:
        assert method.losses(batch, 0)
        return
    with pytest.raises(DataError, match=r"\[\[unlabeled\]\]"):
        method.losses(batch, 0)


@every_method
def test_it_resumes_as_if_it_had_never_stopped(name: str, tmp_path: Path) -> None:
    recipe = small_recipe(
        tmp_path,
        method_override(name, tmp_path),
        f'unlabeled=[{{ source = "folder:{tmp_path / "data"}" }}]',
        'network.options={ encoder = "test_efficientnet", width = 16 }',
        "unlabeled_batch_size=2",
        "steps=4",
        "validate_every=4",
    )
    Trainer(recipe, tmp_path / "whole").run(progress=False)
    Trainer(recipe, tmp_path / "parts").run(progress=False, stop_at=2)
    torch.manual_seed(99)  # what another process would have
    resumed = Trainer(recipe, tmp_path / "parts")
    resumed.resume()
    resumed.run(progress=False)
    whole, parts = (load_checkpoint(tmp_path / run / LAST).state for run in ("whole", "parts"))
    assert whole["best_dice"] == parts["best_dice"]
    for key, value in whole["method"].items():
        torch.testing.assert_close(value, parts["method"][key], rtol=0, atol=0, msg=key)


def test_without_averaging_the_network_itself_predicts() -> None:
    for name in ("supervised", "unimatch"):
        method = build_method(name, {"average_decay": 0}, NETWORK, classes=2)
        assert method.predictor is method.networks["network"]


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean supervised"):
        build_method("supervized", {}, NETWORK, 2)
