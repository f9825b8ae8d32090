"""A network from elsewhere becomes a bundle that labels as it did where it came from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_export.__main__ import main
from model_export.foreign_card import EXAMPLE, ForeignCard
from model_export.pictures import draw_pictures
from model_export.wrapped_bundle import wrap_model
from service.backends import open_backend
from service.contract.bundle import Bundle, open_bundle
from service.contract.model_card import CARD_NAME
from service.errors import BundleError
from tests.model_export.foreign_networks import (
    SIZE,
    expect_scores,
    load_card,
    write_card,
    write_foreign,
)
from tests.service.runtimes import RUNTIMES
from training.checkpoint import DEVIATION, MEAN

IMAGES = np.stack(list(draw_pictures(SIZE, 3, seed=40)))
HALVES = ("divide_by = 127.5\nmean = [1, 1, 1]\nstd = [1, 1, 1]", (1, 1, 1), (1, 1, 1), 127.5)
BYTES = (
    "divide_by = 1\nmean = [103.53, 116.28, 123.675]\nstd = [57.375, 57.12, 58.395]",
    (103.53, 116.28, 123.675),
    (57.375, 57.12, 58.395),
    1,
)
SIZED = "size = { height = 96, width = 160 }\n"


def wrap(
    model: Path, card: ForeignCard, out: Path, has_confidence: bool = False, images: int = 2
) -> tuple[Bundle, tuple[str, ...]]:
    bundle, agreement, notes = wrap_model(
        model, card, out, draw_pictures(SIZE, images), has_confidence=has_confidence
    )
    assert agreement.labels_equal >= 0.9999
    return bundle, notes


def segment(bundle: Bundle, name: str = "onnxruntime-cpu") -> list[np.ndarray]:
    """Masks and perhaps confidences of IMAGES."""
    backend = open_backend(name, bundle, batch_sizes=(3,), precision="float32")
    try:
        if bundle.card.has_confidence:
            return [each.copy() for each in backend.segment_with_confidence(IMAGES)]
        return [backend.segment(IMAGES).copy()]
    finally:
        backend.close()


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize(("given", "mean", "std", "divide_by"), [HALVES, BYTES], ids=["halves", "bytes"])
def test_colours_are_ordered_and_scaled_as_the_card_says(
    name: str,
    channels: str,
    given: str,
    mean: Sequence[float],
    std: Sequence[float],
    divide_by: float,
    tmp_path: Path,
) -> None:
    card = load_card(tmp_path, given=f'{SIZED}channels = "{channels}"\n{given}')
    bundle, _ = wrap(write_foreign(tmp_path / "theirs.onnx"), card, tmp_path / "out")
    ordered = IMAGES if channels == "rgb" else IMAGES[..., ::-1]
    expected = expect_scores(ordered, 3, mean, std, divide_by).argmax(axis=-1)
    assert np.mean(segment(bundle, name)[0] == expected) > 0.999
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_imagenet_means_its_statistics_in_the_networks_order(channels: str, tmp_path: Path) -> None:
    card = load_card(tmp_path, given=f'{SIZED}channels = "{channels}"\nnormalise = "imagenet"')
    bundle, _ = wrap(write_foreign(tmp_path / "theirs.onnx"), card, tmp_path / "out")
    step = 1 if channels == "rgb" else -1
    scores = expect_scores(IMAGES[..., ::step], 3, MEAN[::step], DEVIATION[::step], 255)
    assert np.mean(segment(bundle)[0] == scores.argmax(axis=-1)) > 0.999


@pytest.mark.parametrize("name", RUNTIMES)
def test_z_score_is_each_pictures_own(name: str, tmp_path: Path) -> None:
    card = load_card(tmp_path, given=f'{SIZED}channels = "rgb"\nnormalise = "z-score"')
    bundle, _ = wrap(write_foreign(tmp_path / "theirs.onnx"), card, tmp_path / "out")
    axes = (1, 2)
    scores = expect_scores(
        IMAGES - IMAGES.mean(axes, keepdims=True), 3, 0, IMAGES.std(axes, keepdims=True), 1
    )
    assert np.mean(segment(bundle, name)[0] == scores.argmax(axis=-1)) > 0.999


def sigmoid(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-scores))


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("last", ["", "Sigmoid"])
def test_sigmoids_make_a_class_where_they_are_above_the_threshold(
    name: str, classes: int, last: str, tmp_path: Path
) -> None:
    kind = "sigmoid probabilities" if last else "sigmoid logits"
    card = load_card(tmp_path, classes, output=f'kind = "{kind}"\nthreshold = 0.7')
    model = write_foreign(tmp_path / "theirs.onnx", classes - 1, last=last)
    bundle, _ = wrap(model, card, tmp_path / "out", has_confidence=True)
    shares = sigmoid(expect_scores(IMAGES, classes - 1, MEAN, DEVIATION, 255))
    best = shares.max(axis=-1)
    expected = np.where(best > 0.7, shares.argmax(axis=-1) + 1, 0)
    masks, confidences = segment(bundle, name)
    assert np.mean(masks == expected) > 0.999
    assert 100 < np.count_nonzero(expected) < expected.size - 100
    sure = 255 * np.where(expected > 0, best, 1 - best)
    assert np.mean(np.abs(confidences - sure) <= 1) > 0.999


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("last", ["", "Softmax"])
def test_of_logits_and_probabilities_the_largest_wins(
    name: str, classes: int, last: str, tmp_path: Path
) -> None:
    card = load_card(tmp_path, classes, output=f'kind = "{"probabilities" if last else "logits"}"')
    model = write_foreign(tmp_path / "theirs.onnx", classes, last=last)
    bundle, _ = wrap(model, card, tmp_path / "out", has_confidence=True)
    powers = np.exp(expect_scores(IMAGES, classes, MEAN, DEVIATION, 255))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    masks, confidences = segment(bundle, name)
    assert np.mean(masks == shares.argmax(axis=-1)) > 0.999
    assert np.mean(np.abs(confidences - 255 * shares.max(axis=-1)) <= 1) > 0.999


def test_one_channel_may_be_left_out(tmp_path: Path) -> None:
    axis = numpy_helper.from_array(np.array([1], np.int64))
    nodes = (
        helper.make_node("Constant", [], ["axis"], value=axis),
        helper.make_node("Squeeze", ["scores", "axis"], ["flat"]),
    )
    model = write_foreign(tmp_path / "theirs.onnx", 1, nodes=nodes, result="flat")
    card = load_card(tmp_path, 2, output='kind = "sigmoid logits"\nthreshold = 0.5')
    bundle, _ = wrap(model, card, tmp_path / "out")
    expected = expect_scores(IMAGES, 1, MEAN, DEVIATION, 255)[..., 0] > 0
    assert np.mean(segment(bundle)[0] == expected) > 0.999


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("stride", [4, 32])
def test_an_output_that_is_smaller_is_enlarged_as_torch_does(name: str, stride: int, tmp_path: Path) -> None:
    model = write_foreign(tmp_path / "theirs.onnx", stride=stride)
    bundle, notes = wrap(model, load_card(tmp_path), tmp_path / "out", has_confidence=True)
    assert notes == (f"enlarged the output of {160 // stride} x {96 // stride}",)
    masks, _ = segment(bundle, name)
    whole, _ = segment(bundle)
    assert np.mean(masks == whole) > 0.999


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize(
    ("batch", "shapes"),
    [
        (1, ()),
        (1, ([1, 3, 96 * 160], [1, -1, 96, 160])),
        (1, ([3, 96 * 160], [1, 3, 96, 160])),
        (2, ([2, 3, 96 * 160], [2, -1, 96, 160])),
    ],
    ids=["nowhere", "in front", "left out", "two"],
)
def test_a_fixed_batch_is_opened_where_it_is_written_into_shapes(
    name: str, batch: int, shapes: tuple[list[int], ...], tmp_path: Path
) -> None:
    nodes: list[onnx.NodeProto] = []
    for index, lengths in enumerate(shapes):
        value = numpy_helper.from_array(np.array(lengths, np.int64))
        before, after = ("scores", "flat") if index == 0 else ("flat", "result")
        nodes.append(helper.make_node("Constant", [], [f"shape {index}"], value=value))
        nodes.append(helper.make_node("Reshape", [before, f"shape {index}"], [after], allowzero=1))
    model = write_foreign(
        tmp_path / "theirs.onnx",
        shape=(batch, 3, 96, 160),
        nodes=tuple(nodes),
        result="result" if nodes else "scores",
    )
    card = load_card(tmp_path, given='channels = "rgb"\nnormalise = "imagenet"')
    bundle, notes = wrap(model, card, tmp_path / "out")
    assert notes == (f"opened the batch, which was fixed at {batch}",)
    expected = expect_scores(IMAGES, 3, MEAN, DEVIATION, 255).argmax(axis=-1)
    assert np.mean(segment(bundle, name)[0] == expected) > 0.999


def test_an_older_opset_is_raised_and_said(tmp_path: Path) -> None:
    model = write_foreign(tmp_path / "theirs.onnx", opset=11)
    bundle, notes = wrap(model, load_card(tmp_path), tmp_path / "out")
    assert notes == ("raised opset 11 to 18",)
    assert onnx.load(str(bundle.model_path)).opset_import[0].version == 18


def test_weights_beside_the_model_are_taken_in(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    path = write_foreign(tmp_path / "theirs" / "theirs.onnx")
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    bundle, notes = wrap(path, load_card(tmp_path), tmp_path / "out")
    assert notes == ("took in the weights of w.bin",)
    shutil.rmtree(tmp_path / "theirs")
    expected = expect_scores(IMAGES, 3, MEAN, DEVIATION, 255).argmax(axis=-1)
    assert np.mean(segment(open_bundle(bundle.folder))[0] == expected) > 0.999


def test_one_of_several_outputs_is_named_in_the_card(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "theirs.onnx")
    model = onnx.load(str(path))
    model.graph.node.append(helper.make_node("Neg", ["scores"], ["deep"]))
    model.graph.output.append(helper.make_tensor_value_info("deep", TensorProto.FLOAT, None))
    onnx.save(model, str(path))
    with pytest.raises(BundleError, match=r"has 2 outputs: scores .*deep.*Set output\.name"):
        wrap(path, load_card(tmp_path), tmp_path / "out")
    bundle, _ = wrap(path, load_card(tmp_path, output='kind = "logits"\nname = "deep"'), tmp_path / "out")
    expected = expect_scores(IMAGES, 3, MEAN, DEVIATION, 255).argmin(axis=-1)
    assert np.mean(segment(bundle)[0] == expected) > 0.999


def test_a_branch_that_uses_the_weights_is_kept(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("Conv", ["image", "mask"], [name])
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )

    path = write_foreign(tmp_path / "theirs.onnx")
    model = onnx.load(str(path))
    yes = numpy_helper.from_array(np.array(True))
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Constant", [], ["yes"], value=yes))
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["scores"], then_branch=branch("a"), else_branch=branch("b"))
    )
    onnx.save(model, str(path))
    bundle, _ = wrap(path, load_card(tmp_path), tmp_path / "out")
    expected = expect_scores(IMAGES, 3, MEAN, DEVIATION, 255).argmax(axis=-1)
    assert np.mean(segment(bundle)[0] == expected) > 0.999


def test_the_command_writes_what_check_proves_and_nothing_of_where_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, card = write_foreign(tmp_path / "theirs.onnx", last="Relu"), write_card(tmp_path / "card.toml")
    out = tmp_path / "out"
    arguments = ["wrap", str(model), "--card", str(card), "--out", str(out), "--limit", "3", "--confidence"]
    assert main(arguments) == 0
    assert "100.0000% of labels equal on 3 frames" in capsys.readouterr().out
    assert main(["check", str(out)]) == 0
    written = open_bundle(out).card
    assert (written.name, written.licence, written.network, written.parameters) == (
        "theirs",
        "MIT",
        "foreign",
        9,
    )
    assert written.parity[0].frames == 3
    assert not re.search(rb"/home/me|theirs\.py", (out / "model.onnx").read_bytes())
    before = (out / CARD_NAME).read_bytes()
    assert main(arguments) == 2
    assert "add --force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert (out / CARD_NAME).read_bytes() == before


def test_the_example_is_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["wrap", "--example"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == EXAMPLE
    (tmp_path / "card.toml").write_text(EXAMPLE, encoding="utf-8")
    assert ForeignCard.load(tmp_path / "card.toml").channels == 2
