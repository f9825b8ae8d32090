"""The contract that every training method keeps, over the table of methods."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.errors import DataError
from tests.training.small_runs import small_recipe
from training.config import NetworkConfig
from training.method import Batch, Method
from training.methods import METHODS, build_method
from training.trainer import make_optimizer

NETWORK = NetworkConfig(
    name="edge", options={"encoder": "mobilenetv4_conv_small_050", "width": 16, "dropout": 0.0}
)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    torch.manual_seed(0)
    return build_method(request.param, {}, NETWORK, classes=2)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    targets = torch.zeros(2, 64, 96, dtype=torch.int64)
    targets[0, 20:40], targets[1, :, 30:50] = 1, 1
    images = torch.randn(2, 3, 64, 96, generator=generator) + 2 * targets[:, None]
    return Batch(images, targets)


def test_each_term_is_finite_and_has_a_gradient(method: Method, batch: Batch) -> None:
    losses = method.train().losses(batch, 0)
    assert losses
    for name, loss in losses.items():
        assert loss.ndim == 0 and torch.isfinite(loss), name
        gradients = torch.autograd.grad(
            loss, [p for p in method.parameters() if p.requires_grad], retain_graph=True, allow_unused=True
        )
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients), name


def test_every_unfrozen_parameter_gets_a_gradient(method: Method, batch: Batch) -> None:
    torch.stack(list(method.train().losses(batch, 0).values())).sum().backward()
    without = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_optimiser_takes_exactly_the_unfrozen_parameters(method: Method, tmp_path: Path) -> None:
    optimizer = make_optimizer(method, small_recipe(tmp_path).optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in method.parameters() if p.requires_grad}


def test_it_learns_a_tiny_set(method: Method, batch: Batch, tmp_path: Path) -> None:
    optimizer = make_optimizer(method, small_recipe(tmp_path).optimizer)
    method.train()
    for step in range(60):
        optimizer.zero_grad()
        torch.stack(list(method.losses(batch, step).values())).sum().backward()
        optimizer.step()
        method.after_step(step)
    predictor = method.predictor.eval()
    with torch.inference_mode():
        predicted = predictor(batch.images_nchw).argmax(dim=1)
    shared = 2 * ((predicted == 1) & (batch.targets_nhw == 1)).sum()
    assert float(shared / ((predicted == 1).sum() + (batch.targets_nhw == 1).sum())) > 0.85


def test_its_state_restores_the_predictor(method: Method, batch: Batch) -> None:
    copy = type(method)(method.options, NETWORK, classes=2)
    copy.load_state_dict(method.state_dict())
    with torch.inference_mode():
        first = method.predictor.eval()(batch.images_nchw)
        second = copy.predictor.eval()(batch.images_nchw)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_without_averaging_the_network_itself_predicts() -> None:
    method = build_method("supervised", {"average_decay": 0}, NETWORK, classes=2)
    assert method.predictor is method.network


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean supervised"):
        build_method("supervized", {}, NETWORK, 2)
