from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import model_export.quantize as quantization
import model_export.quantize_command as command
from model_export.__main__ import main
from model_export.parity import measure_agreement, run_graph
from model_export.pictures import draw_pictures
from model_export.quantize import Calibrated, calibrate, find_sensitive, quantize
from model_export.quantize_command import _runs
from service.backends import load_backend, open_backend
from service.backends.tensorrt_graphs import reason_against_types
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import Bundle, hash_file, open_bundle, save_card
from service.contract.model_card import InputSize
from service.processors import computes_int8
from tests.service.runtimes import RUNTIMES

needs_int8 = pytest.mark.skipif(not computes_int8(), reason="this processor has no dot product of bytes")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that ships, without its graph in int8: random weights have labels too close to each other."""
    folder = tmp_path_factory.mktemp("bundles") / "plain"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    card = open_bundle(folder).card
    (folder / card.models["int8"].file).unlink()
    left = {name: digest for name, digest in card.files.items() if name != card.models["int8"].file}
    parity = tuple(each for each in card.parity if each.precision == "float32")
    models = {"float32": card.models["float32"]}
    save_card(card.model_copy(update={"models": models, "files": left, "parity": parity}), folder)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory, plain: Bundle) -> str:
    """Labeled: with what the network itself gives for them."""
    folder = tmp_path_factory.mktemp("frames")
    predict, size = run_graph(plain.model_path), plain.card.input_size
    for name in ("image", "mask"):
        (folder / name).mkdir()
    for number, image_hwc in enumerate(draw_pictures(size, 6)):
        cv2.imwrite(str(folder / "image" / f"{number}.png"), image_hwc[:, :, ::-1])
        cv2.imwrite(str(folder / "mask" / f"{number}.png"), 255 * predict(image_hwc[None])[0][0])
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def int8_bundle(plain: Bundle, frames: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("int8") / "bundle"
    options = ["--calibrate", frames, "--frames", "4", "--data", frames, "--out", str(out)]
    assert main(["quantize", str(plain.folder), *options]) == 0
    return open_bundle(out)


@pytest.fixture(scope="module")
def calibrated(plain: Bundle) -> Calibrated:
    return calibrate(plain.model_path, draw_pictures(plain.card.input_size, 3))


def test_the_card_says_how_the_graph_was_made_and_what_it_keeps(plain: Bundle, int8_bundle: Bundle) -> None:
    card = int8_bundle.card
    model = card.models["int8"]
    assert (model.calibration, model.calibration_frames, model.float_nodes) == ("folder", 4, ())
    assert card.files[model.file] == hash_file(int8_bundle.folder / model.file)
    assert card.parity[: len(plain.card.parity)] == plain.card.parity
    for measured in card.parity[len(plain.card.parity) :]:
        assert (measured.precision, measured.frames, measured.data) == ("int8", 6, "folder")
        assert 0.995 <= measured.labels_equal < 1.0
        assert measured.dice_float32 == pytest.approx(1.0)
        assert measured.dice is not None and 0.9 < measured.dice < 1.0
    assert card.model_copy(update={"models": {}, "files": {}, "parity": ()}) == plain.card.model_copy(
        update={"models": {}, "files": {}, "parity": ()}
    )


@needs_int8
def test_every_runtime_that_is_here_was_measured_and_runs_it(int8_bundle: Bundle) -> None:
    runs = [name for name in RUNTIMES if "int8" in load_backend(name).precisions]
    assert [each.backend for each in int8_bundle.card.parity if each.precision == "int8"] == runs
    for name in ("auto", *runs):
        backend = open_backend(name, int8_bundle, batch_sizes=(1, 2), threads=2)
        assert backend.precision == "int8"
        masks_nhw = backend.segment(np.stack([int8_bundle.golden_image_hwc] * 2))
        assert (masks_nhw == int8_bundle.golden_mask_hw).mean() > 0.995
        backend.close()
    assert main(["check", str(int8_bundle.folder)]) == 0


def test_convolutions_multiply_bytes_and_the_first_reads_those_of_the_picture(int8_bundle: Bundle) -> None:
    graph = onnx.load(str(int8_bundle.path_of("int8"))).graph
    made_by = {output: node for node in graph.node for output in node.output}
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for conv in (node for node in graph.node if node.op_type == "Conv"):
        weight = made_by[conv.input[1]]
        assert weight.op_type == "DequantizeLinear" and values[weight.input[0]].dtype == np.int8
        assert values[weight.input[1]].size == values[weight.input[0]].shape[0], (
            "a scale for each output channel"
        )
        assert made_by[conv.input[0]].op_type == "DequantizeLinear"
    first = made_by[next(node for node in graph.node if node.op_type == "Conv").input[0]]
    assert made_by[first.input[0]].op_type == "Transpose"
    assert (values[first.input[1]], values[first.input[2]]) == (1.0, 114)
    assert not {"Cast", "Sub", "Mul"} & {node.op_type for node in graph.node[:3]}


def test_a_layer_that_is_left_out_multiplies_in_float32(calibrated: Calibrated, tmp_path: Path) -> None:
    left_out = calibrated.convolutions[3]
    quantize(calibrated, tmp_path / "model.onnx", (left_out,))
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    made_by = {output: node for node in graph.node for output in node.output}
    in_float = [node.name for node in graph.node if node.op_type == "Conv" and node.input[1] not in made_by]
    assert in_float == [left_out]


def test_a_symmetric_graph_has_signed_numbers_around_0_only(
    plain: Bundle, frames: str, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    options = ["--symmetric", "--calibrate", frames, "--frames", "4", "--limit", "4", "--out", str(out)]
    assert main(["quantize", str(plain.folder), *options]) == 0
    bundle = open_bundle(out)
    graph = onnx.load(str(bundle.path_of("int8"))).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    steps = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(steps) > 100
    for node in steps:
        assert values[node.input[2]].dtype == np.int8 and not values[node.input[2]].any()
    assert reason_against_types(bundle, "int8") is None
    assert "TensorRT takes only signed ones" in str(reason_against_types(open_bundle(DEFAULT_BUNDLE), "int8"))


def test_layers_are_left_out_until_enough_labels_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Calibrated(onnx.ModelProto(), None, None, tuple(f"layer{number}" for number in range(9)), 1)
    tried: list[list[str]] = []

    def write_names(_: Calibrated, path: Path, float_nodes: Sequence[str] = ()) -> None:
        path.write_text(" ".join(float_nodes))

    def score(path: Path) -> float:
        tried.append(path.read_text().split())
        return 0.99 + 0.004 * len({"layer2", "layer7"} & set(tried[-1]))

    monkeypatch.setattr(quantization, "quantize", write_names)
    assert set(find_sensitive(layers, score, 0.998, limit=5)) == {"layer2", "layer7"}
    assert tried[0] == [] and len(tried) == 1 + 9 + 2
    tried.clear()
    assert find_sensitive(layers, score, 0.99, limit=5) == ()
    assert tried == [[]]
    assert len(find_sensitive(layers, score, 1.0, limit=3)) == 3, "as far as it came"


def test_the_option_for_more_equal_labels_leaves_layers_in_float32(
    plain: Bundle, frames: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def find(calibrated: Calibrated, score: object, at_least: float, limit: int) -> Sequence[str]:
        asked.append(at_least)
        return calibrated.convolutions[-2:]

    monkeypatch.setattr(command, "find_sensitive", find)
    options = ["--calibrate", frames, "--at-least", "0.9999", "--out", str(tmp_path / "out")]
    assert main(["quantize", str(plain.folder), *options]) == 0
    assert asked == [0.9999]
    assert len(open_bundle(tmp_path / "out").card.models["int8"].float_nodes) == 2


def test_float16_keeps_the_labels_and_halves_the_weights(plain: Bundle, frames: str, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert (
        main(["quantize", str(plain.folder), "--precision", "float16", "--data", frames, "--out", str(out)])
        == 0
    )
    bundle = open_bundle(out)
    model = onnx.load(str(bundle.path_of("float16")))
    in_float = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    assert all(each.name.endswith("_scales") for each in in_float), (
        "a resize takes its scales in float32 only"
    )
    measured = bundle.card.parity[-1]
    assert measured.precision == "float16" and measured.labels_equal > 0.9995
    assert bundle.path_of("float16").stat().st_size < 0.55 * bundle.model_path.stat().st_size


def test_bfloat16_is_measured_without_a_graph(
    plain: Bundle, frames: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--precision", "bfloat16", "--data", frames, "--out", str(tmp_path / "bundle")]
    runs = [name for name in RUNTIMES if _runs(name, plain, "bfloat16")]
    if not runs:
        assert main(["quantize", str(plain.folder), *options]) == 2
        assert "No runtime here computes bfloat16" in capsys.readouterr().err
        return
    assert main(["quantize", str(plain.folder), *options]) == 0
    card = open_bundle(tmp_path / "bundle").card
    assert set(card.models) == {"float32"}
    assert [each.backend for each in card.parity if each.precision == "bfloat16"] == runs


def test_float16_refuses_what_it_cannot_hold(
    plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(plain.folder, tmp_path / "large"))
    model = onnx.load(str(folder / "model.onnx"))
    bias = next(each for each in model.graph.initializer if each.name.endswith("conv_stem.weight_bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(9e4), bias.name))
    onnx.save(model, str(folder / "model.onnx"))
    files = {**plain.card.files, "model.onnx": hash_file(folder / "model.onnx")}
    save_card(plain.card.model_copy(update={"files": files}), folder)
    assert main(["quantize", str(folder), "--precision", "float16", "--limit", "2"]) == 2
    assert "Expected less than 65504, the largest float16" in capsys.readouterr().err
    assert set(open_bundle(folder).card.models) == {"float32"}


def test_a_graph_with_other_labels_is_refused_and_the_bundle_stays(
    plain: Bundle, frames: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(calibrated: Calibrated, path: Path, float_nodes: Sequence[str] = ()) -> None:
        quantize(calibrated, path, float_nodes)
        model = onnx.load(str(path))
        node = next(node for node in model.graph.node if node.op_type == "Greater")
        node.input[0], node.input[1] = node.input[1], node.input[0]
        onnx.save(model, str(path))

    monkeypatch.setattr(command, "quantize", spoil)
    before = {path: path.stat().st_mtime_ns for path in plain.folder.parent.rglob("*")}
    assert main(["quantize", str(plain.folder), "--calibrate", frames, "--frames", "2", "--limit", "2"]) == 2
    assert "gives another mask" in capsys.readouterr().err
    after = {path: path.stat().st_mtime_ns for path in plain.folder.parent.rglob("*")}
    assert {path for path in after if path not in before} == set()
    assert open_bundle(plain.folder).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int8"), "--calibrate is not given"),
        (("--calibrate", "folder:NOWHERE"), "NOWHERE"),
        (("--calibrate", "nothing"), "names no data"),
    ],
)
def test_what_is_missing_is_named(
    plain: Bundle, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(plain.folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_there_is_not_written_over(plain: Bundle, frames: str, tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("mine")
    assert main(["quantize", str(plain.folder), "--calibrate", frames, "--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


def test_the_bundle_that_ships_holds_its_labels_in_int8() -> None:
    bundle = open_bundle(DEFAULT_BUNDLE)
    size = InputSize(height=bundle.card.input_size.height, width=bundle.card.input_size.width)
    agreement = measure_agreement(
        run_graph(bundle.model_path), run_graph(bundle.path_of("int8")), draw_pictures(size, 4)
    )
    assert agreement.labels_equal >= 0.995
    assert sum(path.stat().st_size for path in DEFAULT_BUNDLE.rglob("*") if path.is_file()) < 10e6
