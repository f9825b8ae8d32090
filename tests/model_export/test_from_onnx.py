"""A network rebuilt from a bundle does what the bundle does, and can be trained further."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from model_export.from_onnx import find_network, rebuild_network, require_same_labels
from model_export.pictures import draw_pictures, fit_to_card
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import Bundle, open_bundle
from service.contract.geometry import Image
from service.contract.model_card import MODEL_NAME
from service.errors import BundleError, DataError
from tests.model_export.strange_bundle import NETWORK, SIZE, to_batch, write_strange_bundle
from training.checkpoint import DEVIATION, MEAN, normalise
from training.config import NetworkConfig
from training.data import open_data

EDGE = NetworkConfig()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "strange"
    return write_strange_bundle(folder, classes=3)


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return open_bundle(DEFAULT_BUNDLE)


def logits_of(model: Path, images: Sequence[Image]) -> np.ndarray:
    """What the graph computes before it labels: its last MatMul brings the logits to the picture's size."""
    proto = onnx.load(str(model))
    last = [node.output[0] for node in proto.graph.node if node.op_type == "MatMul"][-1]
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image_hwc[None]})[0] for image_hwc in images])


@torch.no_grad()
def compare_with_graph(bundle: Bundle, rebuilt: nn.Module, images: Sequence[Image]) -> None:
    expected_nchw = logits_of(bundle.model_path, images)
    logits_nchw = rebuilt(normalise(to_batch(images))).numpy()
    assert np.ptp(expected_nchw) > 1
    np.testing.assert_allclose(logits_nchw, expected_nchw, rtol=0, atol=1e-3)
    assert np.array_equal(logits_nchw.argmax(axis=1), expected_nchw.argmax(axis=1))


def measured(bundle: Bundle, predictor: nn.Module) -> nn.Module:
    """With the channel statistics that tell what it takes, as Checkpoint.build_predictor gives them."""
    predictor.register_buffer("mean", torch.tensor(MEAN), persistent=False)
    predictor.register_buffer("std", torch.tensor(DEVIATION), persistent=False)
    return predictor


def test_a_rebuilt_network_gives_the_logits_of_its_graph(bundle: Bundle) -> None:
    assert find_network(bundle, EDGE) == NETWORK  # the card says so
    rebuilt = rebuild_network(bundle, NETWORK, draw_pictures(SIZE, 3))
    others = list(draw_pictures(SIZE, 3, seed=70))
    compare_with_graph(bundle, rebuilt, others)
    require_same_labels(bundle, measured(bundle, rebuilt), others)


def test_the_shipped_bundle_is_rebuilt_by_its_recipe_and_labels_real_frames_alike(
    shipped: Bundle, data_folder: Path
) -> None:
    def frames(source: str, stride: int) -> list[Image]:
        samples = open_data(f"{source}:{data_folder / source}")[::stride]
        return [fit_to_card(sample.load_image(), shipped.card) for sample in samples]

    network = find_network(shipped, NetworkConfig(name="mms_unet"))
    assert network.options["finest_stride"] == 4
    rebuilt = rebuild_network(shipped, network, frames("intermountain", 40))
    compare_with_graph(shipped, rebuilt, [*frames("endovis2015_rigid", 20), *frames("intermountain", 50)])


def test_the_shipped_bundle_is_rebuilt_where_no_frame_is_at_hand(shipped: Bundle) -> None:
    rebuilt = rebuild_network(shipped, find_network(shipped, EDGE), draw_pictures(SIZE, 2))
    compare_with_graph(shipped, rebuilt, list(draw_pictures(shipped.card.input_size, 2)))


@pytest.mark.parametrize("name", ["bundle", "shipped"])
def test_in_training_it_does_what_it_does_in_service(name: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    images = list(draw_pictures(bundle.card.input_size, 6, seed=30))
    rebuilt = rebuild_network(bundle, find_network(bundle, EDGE), images)
    trained = copy.deepcopy(rebuilt).train()
    norms = [module for module in trained.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in trained.modules():
        if isinstance(module, nn.Dropout2d):
            module.eval()
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    images_nchw = normalise(to_batch(images))
    with torch.no_grad():
        served_nchw, logits_nchw = rebuilt(images_nchw), trained(images_nchw)
    torch.testing.assert_close(logits_nchw, served_nchw, rtol=0, atol=2e-2)
    assert (logits_nchw.argmax(dim=1) == served_nchw.argmax(dim=1)).float().mean() > 0.999
    for norm, (mean, variance) in zip(norms, before, strict=True):
        deviation = (variance + norm.eps).sqrt()
        torch.testing.assert_close(norm.running_mean / deviation, mean / deviation, rtol=0, atol=1e-2)
        torch.testing.assert_close(norm.running_var + norm.eps, variance + norm.eps, rtol=5e-2, atol=0)


def test_nothing_of_the_fresh_network_is_left(bundle: Bundle) -> None:
    rebuilt = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        rebuilt.append(rebuild_network(bundle, NETWORK, draw_pictures(SIZE, 1)).state_dict())
    for name, value in rebuilt[0].items():
        assert torch.equal(value, rebuilt[1][name]), name


def test_a_card_without_options_is_tried_with_those_that_are_given(bundle: Bundle) -> None:
    silent = replace(bundle, card=bundle.card.model_copy(update={"network_options": None}))
    assert find_network(silent, NETWORK) == NETWORK
    with pytest.raises(BundleError, match=r"convolutions\. Expected \d+, those of edge"):
        find_network(silent, EDGE)


@pytest.mark.slow
def test_a_mean_of_two_networks_is_refused(tmp_path: Path) -> None:
    mean = {"name": "cross_pseudo_supervision", "predict_with": "mean", "average_decay": 0}
    both = write_strange_bundle(tmp_path / "both", classes=2, **mean)
    with pytest.raises(BundleError, match="as a mean of two networks has"):
        find_network(both, EDGE)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"network_options": {**NETWORK.options, "width": 24}}, r"lateral\.3\.0 of edge with"),
        ({"network_options": {**NETWORK.options, "finest_stride": 8}}, "convolutions"),
        ({"network_options": {"encoder": "resnet18"}}, "convolutions"),
        ({"network_options": {"encoder": "resnet0"}}, "cannot be built"),
        ({"network_options": {"breadth": 3}}, "cannot be built"),
        ({"network": "edgy", "network_options": {}}, "There is no network 'edgy'"),
    ],
)
def test_another_network_than_the_card_names_is_refused(
    bundle: Bundle, network: dict[str, object], words: str
) -> None:
    wrong = replace(bundle, card=bundle.card.model_copy(update=network))
    with pytest.raises(BundleError, match=words) as refused:
        find_network(wrong, EDGE)
    assert MODEL_NAME in refused.value.found


def halve(proto: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("conv_stem.weight"))
    half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), weight.name)
    weight.CopyFrom(half)


def compute(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "Conv")
    node.input[1] = "dequantised"


@pytest.mark.parametrize(("spoil", "words"), [(halve, "is float16"), (compute, "computed in the graph")])
def test_weights_that_are_not_plain_are_refused(
    bundle: Bundle, tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], words: str
) -> None:
    proto = onnx.load(str(bundle.model_path))
    spoil(proto)
    onnx.save(proto, str(tmp_path / MODEL_NAME))
    with pytest.raises(BundleError, match=words):
        find_network(replace(bundle, folder=tmp_path), NETWORK)


def test_other_labels_than_the_bundle_gives_are_refused(bundle: Bundle) -> None:
    rebuilt = rebuild_network(bundle, NETWORK, draw_pictures(SIZE, 1))
    with torch.no_grad():
        rebuilt.classify.bias[1] += 1
    with pytest.raises(BundleError, match="gives other labels"):
        require_same_labels(bundle, measured(bundle, rebuilt), draw_pictures(SIZE, 2))


def test_statistics_of_no_picture_are_refused(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="no picture"):
        rebuild_network(bundle, NETWORK, [])
