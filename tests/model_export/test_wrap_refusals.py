"""What cannot be served is refused with what was found and what to do, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import model_export.foreign_model as foreign_model
import model_export.wrapped_bundle as wrapped_bundle
from model_export.__main__ import main
from model_export.foreign_card import ForeignCard
from model_export.pictures import draw_pictures
from model_export.wrapped_bundle import wrap_model
from service.errors import BundleError
from tests.model_export.foreign_networks import SIZE, load_card, write_card, write_foreign

SIZED = 'channels = "rgb"\nnormalise = "imagenet"\nsize = { height = 64, width = 64 }'
UNSIZED = 'channels = "rgb"\nnormalise = "imagenet"'
FIXED = (1, 3, 96, 160)


def refuse(path: Path, card: ForeignCard, words: str, folder: Path) -> None:
    with pytest.raises(BundleError, match=words):
        wrap_model(path, card, folder / "out" / "bundle", draw_pictures(SIZE, 1))
    assert not (folder / "out").exists() or not any((folder / "out").iterdir())


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        (("N", 3, 16, 96, 160), TensorProto.FLOAT, r"takes volumes, image float32 \(\?, 3, 16, 96, 160\)"),
        (("N", 1, 96, 160), TensorProto.FLOAT, r"takes image float32 \(\?, 1, 96, 160\)"),
        (("N", 96, 160, 3), TensorProto.FLOAT, "channels last"),
        ((3, 96, 160), TensorProto.FLOAT, r"takes image float32 \(3, 96, 160\)"),
        (None, TensorProto.FLOAT, "input image without a shape"),
        (("N", 3, 96, 160), TensorProto.FLOAT16, "takes image float16"),
        (("N", 3, 96, 160), TensorProto.DOUBLE, "takes image float64"),
        ((1, 3, 16, 160), TensorProto.FLOAT, "takes pictures of 160 x 16, the card says 160 x 96"),
    ],
    ids=["volume", "grey", "channels last", "no batch", "no shape", "float16", "float64", "size"],
)
def test_an_input_that_is_no_picture_is_refused(
    shape: tuple[int | str, ...], dtype: int, words: str, tmp_path: Path
) -> None:
    path = write_foreign(tmp_path / "theirs.onnx", shape=shape, dtype=dtype)
    refuse(path, load_card(tmp_path), words, tmp_path)


@pytest.mark.parametrize(
    ("shape", "given", "words"),
    [
        (("N", 3, "H", "W"), UNSIZED, "takes pictures of any size.*Set input.size"),
        (FIXED, SIZED, "takes pictures of 160 x 96, the card says 64 x 64"),
        ((1, 3, 16, 16), UNSIZED, "takes pictures of 16 x 16.*32 to 4096"),
    ],
)
def test_the_canvas_is_one_that_model_and_card_agree_on(
    shape: tuple[int | str, ...], given: str, words: str, tmp_path: Path
) -> None:
    path = write_foreign(tmp_path / "theirs.onnx", shape=shape)
    refuse(path, load_card(tmp_path, given=given), words, tmp_path)


@pytest.mark.parametrize(
    ("channels", "last", "classes", "output", "words"),
    [
        (3, "", 2, 'kind = "logits"', "gives 3 channels.*2: logits of 2 classes"),
        (3, "", 3, 'kind = "sigmoid logits"\nthreshold = 0.5', "2: sigmoid logits of 3 classes"),
        (3, "", 3, 'kind = "probabilities"', "these are logits"),
        (3, "Sigmoid", 3, 'kind = "probabilities"', "do not add up to 1"),
        (3, "Softmax", 3, 'kind = "logits"', "as probabilities are"),
        (1, "Sigmoid", 2, 'kind = "sigmoid logits"\nthreshold = 0.5', "as probabilities are"),
        (3, "Log", 3, 'kind = "logits"', "not all of them finite"),
        (3, "", 3, 'kind = "logits"\nname = "score"', "has no output 'score'.*one of scores"),
    ],
)
def test_an_output_that_the_card_has_wrong_is_refused(
    channels: int, last: str, classes: int, output: str, words: str, tmp_path: Path
) -> None:
    path = write_foreign(tmp_path / "theirs.onnx", channels, last=last)
    refuse(path, load_card(tmp_path, classes, output=output), words, tmp_path)


def edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(str(path))
    change(model)
    onnx.save(model, str(path))


def add_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def add_argmax(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("ArgMax", ["scores"], ["labels"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("labels", TensorProto.INT64, None))


def add_custom(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Spell", [], ["x"], domain="com.theirs")], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["yes"], ["x"], then_branch=branch, else_branch=branch))


def add_upsampling(model: onnx.ModelProto) -> None:
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice")
    model.graph.initializer.append(scales)
    model.graph.node.append(helper.make_node("Resize", ["scores", "", "twice"], ["large"]))
    model.graph.output[0].name = "large"


def remember_one_batch(model: onnx.ModelProto) -> None:
    """A residual of the shape of one picture, as position embeddings that were expanded have."""
    model.graph.node[-1].output[0] = "sums"
    pad = numpy_helper.from_array(np.zeros((1, 3, 96, 160), np.float32), "pad")
    model.graph.initializer.append(pad)
    model.graph.node.append(helper.make_node("Concat", ["sums", "pad"], ["both"], axis=1))
    model.graph.node.append(helper.make_node("Split", ["both"], ["scores", "rest"], axis=1, num_outputs=2))


def mix_pictures(model: onnx.ModelProto) -> None:
    """Statistics over the whole batch, as of a BatchNorm that was left in training mode."""
    model.graph.node[-1].output[0] = "sums"
    model.graph.node.append(helper.make_node("ReduceMean", ["sums", "over"], ["mean"], keepdims=1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), "over"))
    model.graph.node.append(helper.make_node("Sub", ["sums", "mean"], ["scores"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add_input, r"has 2 inputs \(image .*, more"),
        (add_argmax, "class ids already.*without its argmax"),
        (add_custom, "needs the operator Spell of com.theirs"),
        (add_upsampling, r"gives \(1, 3, 192, 320\) for a picture of 160 x 96"),
        (remember_one_batch, "does not run on two pictures at once.*dynamic batch"),
        (mix_pictures, "gives a picture another mask when it comes beside another"),
        (lambda model: model.graph.node.pop(), "ONNX Runtime cannot open"),
    ],
    ids=["inputs", "argmax", "custom", "larger", "one batch", "mixed", "unfinished"],
)
def test_a_model_that_cannot_be_served_is_refused(
    change: Callable[[onnx.ModelProto], None], words: str, tmp_path: Path
) -> None:
    path = write_foreign(tmp_path / "theirs.onnx")
    edit(path, change)
    refuse(path, load_card(tmp_path), words, tmp_path)


def test_a_size_that_the_network_cannot_take_is_said(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "theirs.onnx", shape=("N", 3, "H", "W"))
    edit(path, lambda model: model.graph.node[0].attribute[0].ints.__setitem__(slice(None), [99, 99]))
    refuse(path, load_card(tmp_path), "fails on a picture of 160 x 96.*Choose another input.size", tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"PK\x03\x04" + bytes(99)], ids=["empty", "text", "zip"]
)
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "theirs.onnx").write_bytes(content)
    refuse(tmp_path / "theirs.onnx", load_card(tmp_path), "is not an ONNX model", tmp_path)


def test_a_model_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "theirs.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    refuse(path, load_card(tmp_path), "is not an ONNX model, or is cut short", tmp_path)


def test_a_missing_model_and_a_missing_card_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = write_card(tmp_path / "card.toml")
    words = ["wrap", str(tmp_path / "no.onnx"), "--out", str(tmp_path / "out"), "--card"]
    assert main([*words, str(card)]) == 2
    assert "no.onnx is not a file" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "no.toml")]) == 2
    assert "surgseg-export wrap --example" in capsys.readouterr().err


def test_a_model_of_more_than_one_file_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_model, "MOST_BYTES", 100)
    path = write_foreign(tmp_path / "theirs.onnx")
    refuse(path, load_card(tmp_path), "is larger than 2 GB", tmp_path)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret.bin", "keeps weights in '../secret.bin', outside its own folder"),
        ("/etc/hostname", "outside its own folder"),
        ("link.bin", "outside its own folder"),
        ("none.bin", "keeps weights in none.bin, which is missing"),
        ("short.bin", "weights that cannot be read"),
    ],
)
def test_weights_are_taken_from_beside_the_model_only(location: str, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(36))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "short.bin").write_bytes(bytes(8))
    path = write_foreign(folder / "theirs.onnx")

    def move_out(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "36")):
            tensor.external_data.add(key=key, value=value)

    model = onnx.load(str(path))
    move_out(model)
    path.write_bytes(model.SerializeToString())
    refuse(path, load_card(tmp_path), words, tmp_path)


def test_a_graph_that_labels_otherwise_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a fault in the layers around the network would."""
    wrong = load_card(tmp_path, given='channels = "bgr"\nnormalise = "imagenet"')
    right = wrapped_bundle.wrap_graph
    monkeypatch.setattr(wrapped_bundle, "wrap_graph", lambda model, _card, *rest: right(model, wrong, *rest))
    path = write_foreign(tmp_path / "theirs.onnx")
    refuse(path, load_card(tmp_path), "gives another mask|disagrees with the network", tmp_path)
