from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional

from model_export.graph_passes import (
    centre_input,
    convolutions,
    multiply_last_resize,
    save_graph,
    weigh_bilinear,
)
from model_export.parity import measure_agreement, run_graph
from model_export.pictures import draw_pictures
from service.contract.bundle import Bundle
from service.contract.model_card import InputSize
from tests.model_export.strange_bundle import SIZE, write_strange_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_strange_bundle(tmp_path_factory.mktemp("bundles") / "strange", 3)


@pytest.mark.parametrize(("length", "out_length"), [(7, 28), (5, 13), (3, 8), (8, 8), (2, 31)])
def test_the_weights_are_those_of_a_bilinear_resize(length: int, out_length: int) -> None:
    values = np.random.default_rng(3).normal(size=(length, 6)).astype(np.float32)
    expected = functional.interpolate(
        torch.from_numpy(values)[None, None], (out_length, 6), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(weigh_bilinear(length, out_length) @ values, expected[0, 0], atol=1e-5)


def resize_model(scale: float, mode: str, *, convolve: bool) -> ir.Model:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            options = {} if mode == "nearest" else {"align_corners": mode == "corners"}
            kind = "nearest" if mode == "nearest" else "bilinear"
            large = functional.interpolate(self.before(image), scale_factor=scale, mode=kind, **options)
            return self.after(large) if convolve else large.argmax(dim=1)

    program = torch.onnx.export(Net().eval(), (torch.zeros(1, 3, 6, 10),), dynamo=True, verbose=False)
    assert program is not None
    return program.model


@pytest.mark.parametrize(
    ("scale", "mode", "convolve", "expected"),
    [
        (4, "bilinear", False, 1),
        (2, "bilinear", False, 0),
        (4, "bilinear", True, 0),
        (4, "nearest", False, 0),
        (4, "corners", False, 0),
    ],
    ids=["logits", "little enlarged", "a layer's", "nearest", "aligned corners"],
)
def test_only_the_last_bilinear_resize_becomes_products(
    scale: float, mode: str, convolve: bool, expected: int
) -> None:
    assert multiply_last_resize(resize_model(scale, mode, convolve=convolve)) == expected


def test_an_exported_bundle_has_products_for_its_logits(bundle: Bundle) -> None:
    operators = [node.op_type for node in onnx.load(str(bundle.model_path)).graph.node]
    assert operators.count("MatMul") == 2
    last = max(index for index, name in enumerate(operators) if name == "Resize")
    assert "Conv" in operators[last:], "the resizes that are left are followed by convolutions"


def test_centring_keeps_the_labels_and_all_but_the_rim_of_the_first_layer(
    bundle: Bundle, tmp_path: Path
) -> None:
    model = ir.load(bundle.model_path)
    first = next(convolutions(model)).outputs[0]
    model.graph.outputs.append(first)
    save_graph(model, tmp_path / "plain.onnx")
    assert centre_input(model) == 114, "255 times the mean of the three means"
    save_graph(model, tmp_path / "centred.onnx")
    plain, centred = (run_graph(tmp_path / f"{name}.onnx") for name in ("plain", "centred"))
    for image_hwc in draw_pictures(SIZE, 3):
        ours, expected = centred(image_hwc[None])[1], plain(image_hwc[None])[1]
        np.testing.assert_allclose(ours[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=2e-4)
        assert np.abs(ours[:, :, 0] - expected[:, :, 0]).max() > 1e-3, "padding is another value"
    agreement = measure_agreement(lambda x: plain(x)[:1], lambda x: centred(x)[:1], draw_pictures(SIZE, 3))
    assert agreement.labels_equal > 0.98, "of random weights, whose logits lie close together"


def test_a_graph_without_such_a_beginning_is_left_alone(small_bundle: Path, tmp_path: Path) -> None:
    model = ir.load(small_bundle / "model.onnx")
    assert centre_input(model) is None
    assert multiply_last_resize(model) == 0
    save_graph(model, tmp_path / "same.onnx")
    image_hwc = next(iter(draw_pictures(InputSize(height=288, width=512), 1)))
    np.testing.assert_array_equal(
        run_graph(tmp_path / "same.onnx")(image_hwc[None])[0],
        run_graph(small_bundle / "model.onnx")(image_hwc[None])[0],
    )
