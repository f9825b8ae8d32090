"""The second output: what it says by the textbook, proven like the mask, for one network and for the mean of two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch

from model_export.__main__ import main
from model_export.parity import Agreement, is_close, measure_agreement
from model_export.pictures import draw_pictures
from model_export.reference import reference_predict
from model_export.servable import Servable, rate
from model_export.to_onnx import embedded_card
from service.backends import open_backend
from service.contract.bundle import GOLDEN_CONFIDENCE, Bundle, hash_file, open_bundle, save_card
from service.contract.model_card import MODEL_NAME, InputSize
from tests.model_export.test_servable import Projection
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import DataConfig, NetworkConfig, Recipe
from training.methods import build_method

SIZE = InputSize(height=64, width=96)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_confidence_is_the_rounded_probability_of_the_label(classes: int) -> None:
    logits_nchw = 4 * torch.randn(2, classes, 20, 20, generator=torch.manual_seed(classes))
    logits_nchw[:, 1, :5] = logits_nchw[:, 0, :5]  # ties
    rated_nhw = rate(logits_nchw)
    assert rated_nhw.dtype == torch.uint8
    for n, row, column in np.ndindex(2, 20, 20):
        exponents = np.exp(logits_nchw[n, :, row, column].double().numpy())
        expected = 255 * exponents.max() / exponents.sum()
        assert abs(int(rated_nhw[n, row, column]) - expected) <= 0.5 + 1e-3
    assert rated_nhw.min() >= 255 // classes


@pytest.mark.parametrize("logit", [0.0, 40.0, 1e4, 3e38])
def test_confidence_stays_in_range_at_the_ends(logit: float) -> None:
    expected = 128 if logit == 0 else 255
    for classes in (2, 3):
        logits_nchw = torch.full((1, classes, 1, 1), -logit)
        logits_nchw[:, 1] = logit
        assert int(rate(logits_nchw)) == (expected if classes == 2 or logit else 85)


@pytest.mark.parametrize("classes", [2, 4])
def test_servable_gives_the_confidence_of_a_network_fed_by_the_textbook(classes: int) -> None:
    predictor = Projection(classes).eval()
    images_nhwc = np.stack(list(draw_pictures(SIZE, 3)))
    with torch.inference_mode():
        masks_nhw, confidences_nhw = Servable(predictor, has_confidence=True)(torch.from_numpy(images_nhwc))
        alone_nhw = Servable(predictor)(torch.from_numpy(images_nhwc))
    assert torch.equal(masks_nhw, alone_nhw)
    _, expected_nhw = reference_predict(predictor, has_confidence=True)(images_nhwc)
    assert np.abs(confidences_nhw.numpy().astype(int) - expected_nhw).max() <= 1
    assert len(np.unique(expected_nhw)) > 20


def test_confidences_agree_within_two_levels_and_no_more() -> None:
    zeros = np.zeros((1, 10, 10), np.uint8)

    def shifted_by(levels: int) -> Agreement:
        reference, candidate = (zeros, zeros + 100), (zeros, np.full_like(zeros, 100 - levels))
        return measure_agreement(lambda _: reference, lambda _: candidate, [np.zeros((10, 10, 3), np.uint8)])

    assert is_close(shifted_by(2), "float32")
    assert not is_close(shifted_by(3), "float32")
    assert shifted_by(3).labels_equal == 1.0
    assert "0.0000% of confidences within 2" in str(shifted_by(3))


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("bfloat16", 0.98), ("int8", 0.9)])
def test_rounding_may_move_confidences_further_than_labels(precision: Any, least: float) -> None:
    assert is_close(Agreement(1, 1.0, 1.0, least), precision)
    assert not is_close(Agreement(1, 1.0, 1.0, least - 0.001), precision)
    assert not is_close(Agreement(1, 0.994, 1.0, 1.0), precision)


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, untrained checkpoint of two networks."""
    data = DataConfig(source="folder:frames")
    options = {"encoder": "test_efficientnet", "width": 16, "finest_stride": 4}
    recipe = Recipe(
        name="two",
        labeled=(data,),
        unlabeled=(data,),
        validation=(data,),
        input_size=SIZE,
        network=NetworkConfig(name="edge", options=options),
        method={"name": "cross_pseudo_supervision", "average_decay": 0.0},
    )
    torch.manual_seed(3)
    state = {
        "method": build_method(recipe.method_name, recipe.method_options, recipe.network, 2).state_dict()
    }
    path = tmp_path_factory.mktemp("checkpoints") / "best.pt"
    save_checkpoint(Checkpoint(recipe, "surgseg-train run two", "", "", 3, 0.5, state), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(checkpoint_path: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_path)


def export(checkpoint_path: Path, out: Path, *options: str) -> Bundle:
    assert main(["bundle", str(checkpoint_path), "--out", str(out), "--limit", "3", *options]) == 0
    return open_bundle(out)


@pytest.fixture(scope="module")
def mean_bundle(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(
        checkpoint_path, tmp_path_factory.mktemp("bundles") / "mean", "--view", "mean", "--confidence"
    )


def test_a_bundle_says_which_view_and_outputs_it_has_and_proves_both(mean_bundle: Bundle) -> None:
    card = mean_bundle.card
    assert (card.view, card.outputs) == ("mean", ("mask", "confidence"))
    assert embedded_card(mean_bundle.model_path) == card.model_copy(update={"files": {}, "parity": ()})
    assert (card.parity[0].labels_equal, card.parity[0].confidences_equal) == (1.0, 1.0)
    graph = onnx.load(str(mean_bundle.model_path)).graph
    assert [value.name for value in graph.output] == ["mask", "confidence"]
    for value in graph.output:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]] == [64, 96]


def test_the_mean_s_confidence_is_lowered_where_its_networks_disagree(
    mean_bundle: Bundle, checkpoint: Checkpoint
) -> None:
    images_nhwc = np.stack(list(draw_pictures(SIZE, 2)))
    instrument = []
    for view in ("first", "second"):
        masks, confidences = reference_predict(checkpoint.build_predictor(view), has_confidence=True)(
            images_nhwc
        )
        instrument.append(np.where(masks == 1, confidences, 255.0 - confidences))
    mean = (instrument[0] + instrument[1]) / 2
    backend = open_backend("onnxruntime-cpu", mean_bundle, batch_sizes=(2,))
    _, confidences_nhw = backend.segment_with_confidence(images_nhwc)
    assert np.abs(np.maximum(mean, 255 - mean) - confidences_nhw).max() <= 1.5
    backend.close()


def test_without_confidence_the_graph_has_the_mask_alone(
    checkpoint_path: Path, mean_bundle: Bundle, tmp_path: Path
) -> None:
    plain = export(checkpoint_path, tmp_path / "first", "--view", "first")
    assert (plain.card.view, plain.card.outputs) == ("first", ("mask",))
    assert plain.card.parity[0].confidences_equal is None
    assert plain.golden_confidence_hw is None
    assert plain.card.parameters * 2 == mean_bundle.card.parameters
    graphs = [onnx.load(str(each.model_path)).graph for each in (plain, mean_bundle)]
    assert [value.name for value in graphs[0].output] == ["mask"]
    assert ["Round" in {node.op_type for node in graph.node} for graph in graphs] == [False, True]


def test_check_proves_the_view_of_the_card_and_its_confidence(
    mean_bundle: Bundle, checkpoint_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(checkpoint_path), "--limit", "2"]
    assert main(["check", str(mean_bundle.folder), *arguments]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for proof in ("golden", "parity"):
        assert "100.0000% of confidences within 2 of 255" in lines[proof]


def test_check_refuses_a_golden_confidence_that_the_model_does_not_give(
    mean_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(mean_bundle.folder, tmp_path / "copied"))
    assert mean_bundle.golden_confidence_hw is not None
    cv2.imwrite(str(folder / GOLDEN_CONFIDENCE), mean_bundle.golden_confidence_hw - 3)
    files = {**mean_bundle.card.files, GOLDEN_CONFIDENCE: hash_file(folder / GOLDEN_CONFIDENCE)}
    save_card(mean_bundle.card.model_copy(update={"files": files}), folder)
    assert main(["check", str(folder)]) == 1
    assert "confidences within 2 of 255" in capsys.readouterr().err


def test_a_view_that_is_not_there_is_refused_in_one_line(
    checkpoint_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", str(checkpoint_path), "--out", str(tmp_path / "new"), "--view", "third"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "no view 'third'. Expected one of first, second, mean." in message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def labeled_folder(tmp_path: Path) -> Path:
    for kind in ("image", "mask"):
        (tmp_path / "frames" / "test" / kind).mkdir(parents=True)
    for index, picture_hwc in enumerate(draw_pictures(InputSize(height=48, width=96), 2)):
        cv2.imwrite(str(tmp_path / "frames" / "test" / "image" / f"{index}.png"), picture_hwc)
        mask_hw = (picture_hwc.mean(axis=2) > 120).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "frames" / "test" / "mask" / f"{index}.png"), mask_hw)
    return tmp_path / "frames"


def test_reliability_of_a_bundle_is_that_of_its_checkpoint(
    mean_bundle: Bundle, checkpoint_path: Path, labeled_folder: Path, tmp_path: Path
) -> None:
    from training.__main__ import main as train_main

    data = ["--data", f"folder:{labeled_folder}", "--json"]
    assert main(["reliability", str(mean_bundle.folder), *data, str(tmp_path / "bundle.json")]) == 0
    options = ["--view", "mean", *data, str(tmp_path / "checkpoint.json")]
    assert train_main(["reliability", str(checkpoint_path), *options]) == 0
    served, trained = (
        json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("bundle", "checkpoint")
    )
    assert served["pixels"] == trained["pixels"] == 2 * 48 * 96
    assert served["confidence"]["ece"] == pytest.approx(trained["confidence"]["ece"], abs=0.005)
    assert "disagreement" in trained and "disagreement" not in served


def test_reliability_of_a_bundle_without_confidence_is_refused_in_one_line(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reliability", str(small_bundle), "--data", "folder:x"]) == 2
    assert "gives no confidence" in capsys.readouterr().err
    assert (small_bundle / MODEL_NAME).is_file()
