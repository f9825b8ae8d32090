"""What processors are slow at is done another way, with the same result or in another precision."""

from __future__ import annotations

import copy
import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from training.device import choose_precision, spare_slow_kernels


def run(
    network: nn.Module, images_nchw: torch.Tensor, *, autocast: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps = network(images_nchw)
    maps.float().square().mean().backward()
    gradient = next(network.parameters()).grad
    assert gradient is not None
    return maps.detach(), gradient.clone()


@pytest.fixture
def images_nchw() -> torch.Tensor:
    return torch.randn(2, 8, 24, 32, generator=torch.Generator().manual_seed(0))


def test_a_strided_depthwise_convolution_works_in_float32_under_autocast(images_nchw: torch.Tensor) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8))
    spared = copy.deepcopy(plain)
    spare_slow_kernels(spared, torch.device("cpu"))
    exact, exact_gradient = run(plain, images_nchw, autocast=False)
    maps, gradient = run(spared, images_nchw, autocast=True)
    assert maps.dtype == torch.bfloat16  # what follows is computed as if nothing had been changed
    torch.testing.assert_close(maps.float(), exact, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(gradient, exact_gradient, rtol=2e-2, atol=2e-3)


def test_without_autocast_nothing_changes(images_nchw: torch.Tensor) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.Conv2d(8, 4, 1))
    spared = copy.deepcopy(plain)
    spare_slow_kernels(spared, torch.device("cpu"))
    for ours, theirs in zip(
        run(spared, images_nchw, autocast=False), run(plain, images_nchw, autocast=False), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_spared_network_has_the_same_weights_by_the_same_names() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, groups=8))
    names = list(network.state_dict())
    spare_slow_kernels(network, torch.device("cpu"))
    assert list(network.state_dict()) == names


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 processor")
def test_bfloat16_is_for_processors_that_compute_it(capsys: pytest.CaptureFixture[str]) -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    computes = "avx512_bf16" in flags or "amx_tile" in flags
    processor = torch.device("cpu")
    assert choose_precision("bfloat16", processor, quiet=False) == ("bfloat16" if computes else "float32")
    assert ("does not compute bfloat16" in capsys.readouterr().err) is not computes


@pytest.mark.parametrize("computes", [False, True])
def test_another_precision_is_told_unless_quiet(
    computes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.device._computes_bfloat16", lambda device: computes)
    processor = torch.device("cpu")
    assert choose_precision("float32", processor, quiet=False) == "float32"
    assert choose_precision("bfloat16", processor) == ("bfloat16" if computes else "float32")
    assert capsys.readouterr().err == ""
    choose_precision("bfloat16", processor, quiet=False)
    assert bool(capsys.readouterr().err) is not computes
