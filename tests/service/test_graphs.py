"""A graph that is not what its bundle's card says is refused by every runtime, in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from service.backends import open_backend
from service.contract.bundle import Bundle, hash_file, open_bundle, save_card
from service.contract.model_card import MODEL_NAME
from service.errors import BundleError
from tests.service.runtimes import RUNTIMES


def _replace_model(small_bundle: Path, tmp_path: Path, model: bytes) -> Bundle:
    folder = tmp_path / "bundle"
    bundle = open_bundle(small_bundle)
    (folder / "golden").mkdir(parents=True)
    for name in (name for name in bundle.card.files if name.startswith("golden/")):
        (folder / name).write_bytes((small_bundle / name).read_bytes())
    (folder / MODEL_NAME).write_bytes(model)
    files = {**bundle.card.files, MODEL_NAME: hash_file(folder / MODEL_NAME)}
    save_card(bundle.card.model_copy(update={"files": files}), folder)
    return open_bundle(folder)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_second_output_of_another_form_is_refused(
    name: str, confident_bundle: Path, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["mask"], axes=[3], keepdims=0),
        helper.make_node("Cast", ["mask"], ["confidence"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "float confidence",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 288, 512, 3])],
        [
            helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", 288, 512]),
            helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["N", 288, 512]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BundleError, match=r"confidence.*float"):
        open_backend(name, _replace_model(confident_bundle, tmp_path, model.SerializeToString()))


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize(
    ("element_type", "input_shape", "output_name", "message"),
    [
        (TensorProto.FLOAT, ["N", 8, 8, 3], "mask", "image.*float"),
        (TensorProto.UINT8, ["N", 3, 288, 512], "mask", "288, 512"),
        (TensorProto.UINT8, [1, 288, 512, 3], "mask", "dynamic N"),
        (TensorProto.UINT8, ["N", 288, 512, 3], "labels", "no output 'mask'"),
    ],
    ids=["float input", "channels first", "fixed batch", "other output"],
)
def test_a_graph_unlike_its_card_is_refused(
    name: str,
    small_bundle: Path,
    tmp_path: Path,
    element_type: int,
    input_shape: list[int | str],
    output_name: str,
    message: str,
) -> None:
    node = helper.make_node("Cast", ["image"], [output_name], to=TensorProto.UINT8)
    graph = helper.make_graph(
        [node],
        "other",
        [helper.make_tensor_value_info("image", element_type, input_shape)],
        [helper.make_tensor_value_info(output_name, TensorProto.UINT8, input_shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BundleError, match=message):
        open_backend(name, _replace_model(small_bundle, tmp_path, model.SerializeToString()))


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_model_file_that_is_no_model_is_refused(name: str, small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"No runtime can open .*cut short|wire type"):
        open_backend(name, _replace_model(small_bundle, tmp_path, b"not a model"))
