"""A graph whose weights lie in another file is refused before a runtime can go and look for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.backends import open_backend
from service.contract import graph_file
from service.contract.bundle import hash_file, open_bundle, save_card
from service.contract.graph_file import is_one_file
from service.contract.model_card import MODEL_NAME, ModelCard
from service.errors import BundleError
from tests.service.runtimes import RUNTIMES

SHIPPED = Path(graph_file.__file__).parents[1] / "bundles" / "default"


def make_external(location: str, count: int = 3) -> TensorProto:
    tensor = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[count])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def make_model(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", [], [], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def in_an_initializer(tensor: TensorProto) -> onnx.ModelProto:
    return make_model(initializers=(tensor,))


def in_a_constant(tensor: TensorProto) -> onnx.ModelProto:
    return make_model(helper.make_node("Constant", [], ["out"], value=tensor))


def in_a_branch(tensor: TensorProto) -> onnx.ModelProto:
    branch = in_a_constant(tensor).graph
    return make_model(helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch))


def in_a_function(tensor: TensorProto) -> onnx.ModelProto:
    model = make_model()
    nodes = [helper.make_node("Constant", [], ["out"], value=tensor)]
    model.functions.append(helper.make_function("here", "f", [], ["out"], nodes, []))
    return model


def in_a_sparse_tensor(tensor: TensorProto) -> onnx.ModelProto:
    model = make_model()
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return model


PLACES = [in_an_initializer, in_a_constant, in_a_branch, in_a_function, in_a_sparse_tensor]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_tensor_can_be(
    place: Callable[[TensorProto], onnx.ModelProto], tmp_path: Path
) -> None:
    inside = numpy_helper.from_array(np.zeros(3, np.float32), "weights")
    only_named = make_external("weights.bin")
    only_named.ClearField("data_location")
    only_flagged = make_external("weights.bin")
    only_flagged.ClearField("external_data")
    for tensor, expected in (
        (inside, True),
        (make_external("w"), False),
        (only_named, False),
        (only_flagged, False),
    ):
        (tmp_path / MODEL_NAME).write_bytes(place(tensor).SerializeToString())
        assert is_one_file(tmp_path / MODEL_NAME) is expected


def test_no_way_to_a_tensor_is_missing() -> None:
    def ways(name: str) -> Iterator[tuple[int, str]]:
        for field in getattr(onnx, f"{name}Proto").DESCRIPTOR.fields:
            child = field.message_type.name.removesuffix("Proto") if field.message_type else ""
            if child in graph_file._CHILDREN:
                yield field.number, child

    for name, children in graph_file._CHILDREN.items():
        assert dict(ways(name)) == children


def test_the_shipped_graphs_are_whole() -> None:
    assert all(is_one_file(SHIPPED / model.file) for model in open_bundle(SHIPPED).card.models.values())


def test_a_cut_file_is_refused_or_has_its_end_where_a_field_ends(tmp_path: Path) -> None:
    whole = in_a_branch(make_external("w")).SerializeToString()
    path = tmp_path / MODEL_NAME
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            is_one_file(path)
        except ValueError:
            continue
        onnx.ModelProto.FromString(whole[:length])


@pytest.mark.parametrize(
    "content",
    [b"", b"<xml/>", b"\x00", b"\x80" * 20, b"\x3a\xff\xff\xff\xff\x0f"],
    ids=["empty", "xml", "field 0", "endless number", "longer than the file"],
)
def test_what_is_no_onnx_file_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MODEL_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"it (is|has) "):
        is_one_file(tmp_path / MODEL_NAME)


def test_a_tag_with_bits_beyond_32_is_read_as_the_runtimes_read_it(tmp_path: Path) -> None:
    tensor = b"\xf0\x80\x80\x80\x70\x01"  # field 14, with bits set that the parser drops
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    (tmp_path / MODEL_NAME).write_bytes(b"\x3a" + bytes([len(graph)]) + graph)
    assert not is_one_file(tmp_path / MODEL_NAME)


def write_bundle_with_external_weights(source: Path, folder: Path) -> None:
    """`source` with its threshold in a file beside the model; every hash of the card is right."""
    card = ModelCard.load(source / "card.json")
    for name in card.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((source / name).read_bytes())
    model = onnx.load(str(folder / MODEL_NAME))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        if tensor.name == "threshold":
            tensor.CopyFrom(make_external("weights.bin", 1))
            tensor.name = "threshold"
            array.tofile(folder / "weights.bin")
    (folder / MODEL_NAME).write_bytes(model.SerializeToString())
    files = {**card.files, MODEL_NAME: hash_file(folder / MODEL_NAME)}
    save_card(card.model_copy(update={"files": files}), folder)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_bundle_whose_weights_no_hash_covers_is_refused(
    name: str, small_bundle: Path, tmp_path: Path
) -> None:
    write_bundle_with_external_weights(small_bundle, tmp_path)
    # the runtime itself would take it, whatever those weights had become
    session = onnxruntime.InferenceSession(str(tmp_path / MODEL_NAME), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "mask"
    with pytest.raises(BundleError, match="keeps weights in another file, which has no hash"):
        open_backend(name, open_bundle(tmp_path))
