"""Networks: the size the papers say, any input size, and features and head that make up the whole."""

from __future__ import annotations

import pytest
import torch

from service.errors import DataError
from training.networks import NETWORKS, build_network, count_parameters


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(64, 96), (70, 110)])
def test_logits_have_the_pictures_size_whatever_it_is(name: str, size: tuple[int, int]) -> None:
    network = build_network(name, 3).eval()
    with torch.inference_mode():
        images_nchw = torch.randn(2, 3, *size)
        logits_nchw = network(images_nchw)
        parts = network.head(network.features(images_nchw), size)
    assert logits_nchw.shape == (2, 3, *size)
    torch.testing.assert_close(parts, logits_nchw)


def test_the_papers_network_has_its_55_6_million_parameters() -> None:
    assert round(count_parameters(build_network("mms_unet", 2)) / 1e6, 1) == 55.6


def test_the_edge_network_is_small() -> None:
    assert count_parameters(build_network("edge", 2)) < 1.5e6


def test_an_unknown_network_names_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean edge"):
        build_network("edg", 2)
