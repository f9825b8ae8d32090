"""The order of cast and transposition that TensorRT needs: the same numbers, the rest byte for byte."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.backends.tensorrt_graphs import cast_before_transpose, read_for_tensorrt, reason_against_types
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import open_bundle
from service.contract.model_card import Model
from service.errors import BundleError

SHAPE = ("N", 4, 6, 3)


def make_model(*nodes: onnx.NodeProto, named: bool = True) -> bytes:
    """A model of those nodes, from `image` to `result`, with the type of `turned` stated."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, SHAPE)
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, ("N", "A", "B", "C"))
    turned = helper.make_tensor_value_info("turned", TensorProto.UINT8, ("N", 3, 4, 6))
    graph = helper.make_graph(nodes, "graph", [image], [result], value_info=[turned] if named else [])
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


TRANSPOSE = helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2], name="turn")
CAST = helper.make_node("Cast", ["turned"], ["values"], to=TensorProto.FLOAT, name="cast")
NEGATE = helper.make_node("Neg", ["values"], ["result"])


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


@pytest.mark.parametrize("named", [True, False])
def test_the_cast_comes_first_and_the_numbers_stay(named: bool) -> None:
    model = make_model(TRANSPOSE, CAST, NEGATE, named=named)
    changed = cast_before_transpose(model)
    assert operators(changed) == ["Cast", "Transpose", "Neg"]
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)
    images_nhwc = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    results = [
        onnxruntime.InferenceSession(each).run(None, {"image": images_nhwc})[0] for each in (model, changed)
    ]
    np.testing.assert_array_equal(*results)
    assert cast_before_transpose(changed) == changed


@pytest.mark.parametrize(
    "nodes",
    [
        (helper.make_node("Cast", ["image"], ["result"], to=TensorProto.FLOAT),),
        (TRANSPOSE, CAST, NEGATE, helper.make_node("Identity", ["image"], ["other"])),
        (TRANSPOSE, CAST, NEGATE, helper.make_node("Identity", ["turned"], ["other"])),
        (TRANSPOSE, helper.make_node("Identity", ["turned"], ["result"])),
    ],
    ids=["cast already", "another takes the image", "another takes what is turned", "no cast follows"],
)
def test_other_graphs_stay_byte_for_byte(nodes: tuple[onnx.NodeProto, ...]) -> None:
    model = make_model(*nodes)
    assert cast_before_transpose(model) == model


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_default_bundles_graphs_become_what_tensorrt_takes(precision: str) -> None:
    bundle = open_bundle(DEFAULT_BUNDLE)
    if precision not in bundle.card.models:
        pytest.skip(f"the default bundle has no graph in {precision}")
    changed = cast_before_transpose(bundle.path_of(precision).read_bytes())  # type: ignore[arg-type]
    (first,) = [node for node in onnx.load_from_string(changed).graph.node if "image" in node.input]
    assert first.op_type == "Cast"
    session = onnxruntime.InferenceSession(changed)
    (mask_nhw,) = session.run(["mask"], {"image": bundle.golden_image_hwc[None]})
    assert (mask_nhw[0] == bundle.golden_mask_hw).mean() > 0.99


def quantized(zero_point: int) -> bytes:
    """The nodes of a graph in int8, their zero point of that ONNX type."""
    step = helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["result"])
    model = onnx.load_from_string(make_model(step))
    model.graph.initializer.append(helper.make_tensor("zero", zero_point, [], [0]))
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0]))
    return model.SerializeToString()


@pytest.mark.parametrize(("zero_point", "is_taken"), [(TensorProto.INT8, True), (TensorProto.UINT8, False)])
def test_unsigned_numbers_with_a_zero_point_are_refused(
    tmp_path: Path, zero_point: int, is_taken: bool
) -> None:
    bundle = open_bundle(DEFAULT_BUNDLE)
    (tmp_path / "model.onnx").write_bytes(quantized(zero_point))
    card = bundle.card.model_copy(update={"models": {"float32": Model(), "int8": Model()}})
    reason = reason_against_types(replace(bundle, card=card, folder=tmp_path), "int8")
    assert (reason is None) == is_taken
    assert is_taken or "TensorRT takes only signed ones around 0" in str(reason)


def test_the_reason_of_a_bundle_without_a_graph_comes_first(small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    assert "the bundle has no graph in int8" in str(reason_against_types(bundle, "int8"))
    assert reason_against_types(bundle, "float32") is None


def test_everything_but_the_two_nodes_stays(small_bundle: Path) -> None:
    before = onnx.load(small_bundle / "model.onnx")
    after = onnx.load_from_string(cast_before_transpose((small_bundle / "model.onnx").read_bytes()))
    assert after.metadata_props == before.metadata_props
    assert after.graph.initializer == before.graph.initializer
    assert len(after.graph.node) == len(before.graph.node)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_model_are_a_value_error_or_stay(data: bytes) -> None:
    with suppress(ValueError):
        cast_before_transpose(data)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"model\.onnx is no ONNX model: .*surgseg-export bundle"):
        read_for_tensorrt(path)
