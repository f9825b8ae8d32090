"""Networks of segmentation_models_pytorch, exported as its users do, become bundles that every runtime serves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnx
import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn

from model_export.__main__ import main
from model_export.pictures import draw_pictures
from service.backends import open_backend
from service.contract.bundle import Bundle, open_bundle
from tests.conftest import Server
from tests.model_export.foreign_networks import IMAGENET, SIZE, write_card
from tests.service.runtimes import RUNTIMES
from training.checkpoint import DEVIATION, MEAN

smp = pytest.importorskip("segmentation_models_pytorch")

CLASSES = 3
IMAGES = np.stack(list(draw_pictures(SIZE, 3, seed=60)))
DYNAMIC = {0: "batch", 2: "height", 3: "width"}
Z_SCORE = 'channels = "rgb"\nnormalise = "z-score"'


def build_unet() -> tuple[nn.Module, nn.Parameter]:
    """The network, and the bias of its last layer."""
    network = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES)
    return network, network.segmentation_head[0].bias


def build_fpn() -> tuple[nn.Module, nn.Parameter]:
    """GroupNorm and upsampling to sizes: where an exporter writes the batch down."""
    network = smp.FPN("resnet18", encoder_weights=None, classes=CLASSES)
    return network, network.segmentation_head[0].bias


def build_nnunet() -> tuple[nn.Module, nn.Parameter]:
    """The architecture of nnU-Net, as MONAI has it."""
    network = DynUNet(2, 3, CLASSES, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2])
    return network, network.output_block.conv.conv.bias


def use_imagenet(images_nhwc: np.ndarray) -> torch.Tensor:
    """float32 `(N, 3, H, W)`, as users of segmentation_models_pytorch make it."""
    images = (torch.from_numpy(images_nhwc).float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    return images.permute(0, 3, 1, 2)


def use_z_score(images_nhwc: np.ndarray) -> torch.Tensor:
    """As nnU-Net does."""
    images = torch.from_numpy(images_nhwc).float().permute(0, 3, 1, 2)
    deviation, mean = torch.std_mean(images, dim=(2, 3), correction=0, keepdim=True)
    return (images - mean) / deviation


def export_now(network: nn.Module, path: Path) -> None:
    """The exporter of today as it is called without a thought: one picture, weights in a file beside the model."""
    torch.onnx.export(
        network, (torch.zeros(1, 3, SIZE.height, SIZE.width),), path, dynamo=True, verbose=False
    )
    assert onnx.load(str(path), load_external_data=False).graph.initializer[0].external_data


def export_before(network: nn.Module, path: Path) -> None:
    """The exporter of torch before 2.9, with an old opset, names that bundles use and every length open."""
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, SIZE.height, SIZE.width),),
            path,
            dynamo=False,
            opset_version=12,
            input_names=["image"],
            output_names=["mask"],
            dynamic_axes={"image": DYNAMIC, "mask": DYNAMIC},
        )


CASES = {
    "Unet": (build_unet, use_imagenet, IMAGENET, export_before),
    "FPN": (build_fpn, use_imagenet, IMAGENET, export_now),
    "nnU-Net": (build_nnunet, use_z_score, Z_SCORE, export_now),
}


@pytest.fixture(scope="module", params=CASES)
def wrapped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, np.ndarray]:
    """A bundle of a network with random weights, and the labels that torch gives IMAGES, as many of each class."""
    build, prepare, given, export = CASES[request.param]
    torch.manual_seed(2)
    network, bias = build()
    network.eval()
    with torch.inference_mode():
        bias -= network(prepare(IMAGES)).mean(dim=(0, 2, 3))
        expected = network(prepare(IMAGES)).argmax(dim=1).numpy()
    folder = tmp_path_factory.mktemp("wrapped")
    export(network, folder / "theirs.onnx")
    card = write_card(folder / "card.toml", CLASSES, given)
    out = folder / "out"
    words = ["wrap", str(folder / "theirs.onnx"), "--card", str(card), "--out", str(out), "--limit", "4"]
    assert main(words) == 0
    return open_bundle(out), expected


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_labels_as_torch_does(name: str, wrapped: tuple[Bundle, np.ndarray]) -> None:
    bundle, expected = wrapped
    assert np.bincount(expected.ravel(), minlength=CLASSES).min() > 1000
    backend = open_backend(name, bundle, batch_sizes=(1, 3), precision="float32")
    together = backend.segment(IMAGES).copy()
    alone = np.concatenate([backend.segment(IMAGES[index : index + 1]).copy() for index in range(3)])
    backend.close()
    assert np.mean(together == expected) >= 0.9999
    assert np.mean(alone == together) >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_check_proves_it(name: str, wrapped: tuple[Bundle, np.ndarray]) -> None:
    assert main(["check", str(wrapped[0].folder), "--backend", name, "--precision", "float32"]) == 0


@pytest.mark.slow
def test_the_service_serves_it(
    wrapped: tuple[Bundle, np.ndarray], launch_server: Callable[..., Server]
) -> None:
    bundle, expected = wrapped
    words: dict[str, Any] = {"SURGSEG_BACKEND": "onnxruntime-cpu"}
    server = launch_server("--bundle", str(bundle.folder), **words)
    for image_hwc, labels_hw in zip(IMAGES, expected, strict=True):
        encoded = cv2.imencode(".png", image_hwc[:, :, ::-1])[1].tobytes()
        answer = httpx.post(f"{server.url}/v1/segment?mask=png", content=encoded).raise_for_status()
        mask_hw = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert np.mean(mask_hw == labels_hw) >= 0.9999
    model = httpx.get(f"{server.url}/v1/model").raise_for_status().json()
    assert model["name"] == "theirs"
