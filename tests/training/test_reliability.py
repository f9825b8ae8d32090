"""Reliability: every figure equals a literal loop of its definition; the commands measure and draw real networks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from service.contract.model_card import InputSize
from tests.training.small_runs import small_recipe, write_bars
from training.__main__ import main
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.data import open_data
from training.methods import build_method
from training.reliability import LevelCounts, Prediction, measure_reliability, rank_correlation
from training.uncertainty import find_pair, make_uncertain_predict

SIZE = InputSize(height=64, width=128)  # wider than the frames, so that the letterbox has black sides
METHOD = 'method = { name = "cross_pseudo_supervision", predict_with = "mean" }'


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and true classes and levels of 600 pixels; the surer, the more often right, with many ties."""
    rng = np.random.default_rng(4)
    true = rng.integers(0, 3, 600).astype(np.uint8)
    levels = rng.choice(np.array([0, 13, 85, 128, 200, 242, 243, 255], np.uint8), 600)
    is_right = rng.random(600) < levels / 280
    return np.where(is_right, true, (true + 1) % 3).astype(np.uint8), true, levels


@pytest.fixture
def counts(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> LevelCounts:
    """The same pixels, counted in two parts."""
    counted = LevelCounts()
    for part in (slice(0, 250), slice(250, None)):
        counted.add(*(array[part].reshape(-1, 5) for array in drawn))
    return counted


@pytest.mark.parametrize("bins", [1, 7, 20])
def test_bins_and_calibration_error_equal_a_loop_over_pixels(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray], counts: LevelCounts, bins: int
) -> None:
    members: dict[int, list[tuple[float, bool]]] = {}
    for predicted, true, level in zip(*drawn, strict=True):
        confidence = int(level) / 255
        place = min(math.floor(confidence * bins), bins - 1)
        members.setdefault(place, []).append((confidence, bool(predicted == true)))
    error = 0.0
    for found, (place, pixels) in zip(counts.bins(bins), sorted(members.items()), strict=True):
        mean = sum(confidence for confidence, _ in pixels) / len(pixels)
        right = sum(is_right for _, is_right in pixels) / len(pixels)
        assert (found.low, found.high) == (place / bins, (place + 1) / bins)
        assert found.pixels == len(pixels)
        assert (found.mean, found.right) == (pytest.approx(mean), pytest.approx(right))
        error += len(pixels) / 600 * abs(right - mean)
    assert counts.calibration_error(bins) == pytest.approx(error)
    assert error > 0.01


@pytest.mark.parametrize("rises_with_error", [False, True])
def test_area_under_the_curve_equals_a_loop_over_pairs(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray], counts: LevelCounts, rises_with_error: bool
) -> None:
    sign = 1 if rises_with_error else -1
    score = sign * drawn[2].astype(int)
    is_wrong = drawn[0] != drawn[1]
    wins = 0.0
    for wrong in score[is_wrong]:
        for right in score[~is_wrong]:
            wins += 1.0 if wrong > right else 0.5 if wrong == right else 0.0
    area = wins / (is_wrong.sum() * (~is_wrong).sum())
    assert counts.area_under_curve(rises_with_error) == pytest.approx(area)
    assert bool(area < 0.5) == rises_with_error


def test_what_is_not_defined_is_none_and_not_a_number_that_looks_well() -> None:
    all_right = LevelCounts()
    all_right.add(np.ones((2, 2), np.uint8), np.ones((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    assert all_right.area_under_curve(rises_with_error=False) is None
    assert all_right.calibration_error() == 0.0
    assert LevelCounts().bins() == []
    assert rank_correlation([0.5, 0.5], [0.1, 0.2]) is None
    assert rank_correlation([0.5], [0.1]) is None


def test_rank_correlation_is_spearman_s_with_ties() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 6, 40) / 5, rng.integers(0, 6, 40) / 5
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_frames_are_counted_at_their_own_size_without_the_black_bars(tmp_path: Path) -> None:
    samples = open_data(f"folder:{write_bars(tmp_path / 'data')}")

    def predict(images_nhwc: np.ndarray) -> Prediction:
        """Right on every pixel; sure on the left half of the canvas, unsure on the right."""
        levels = np.full(images_nhwc.shape[:3], 255, np.uint8)
        levels[:, :, 64:] = 128
        return Prediction((images_nhwc.mean(axis=3) > 160).astype(np.uint8), levels)

    found = measure_reliability(predict, samples, SIZE, "letterbox", progress=False)
    assert found.confidence.pixels[[128, 255]].tolist() == [6 * 64 * 48, 6 * 64 * 48]
    assert (found.confidence.right == found.confidence.pixels).all()
    assert found.instrument.pixels.sum() == sum(int(sample.load()[1].sum()) for sample in samples)
    assert [frame.dice for frame in found.frames] == [1.0] * 6
    assert found.frames[0].uncertainty == pytest.approx(1 - (255 + 128) / 2 / 255)
    assert found.disagreement is None
    assert "disagreement" not in found.to_json()


@pytest.fixture(scope="module")
def two_views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real checkpoint of two networks, untrained, beside the frames `data`."""
    folder = tmp_path_factory.mktemp("two_views")
    recipe = small_recipe(folder, METHOD)
    torch.manual_seed(0)
    method = build_method(recipe.method_name, recipe.method_options, recipe.network, 2)
    state = {"method": method.state_dict()}
    save_checkpoint(Checkpoint(recipe, "surgseg-train run bars", "", "", 0, 0.0, state), folder / "best.pt")
    return folder / "best.pt"


def test_mean_confidence_and_disagreement_are_those_of_both_networks(two_views: Path) -> None:
    checkpoint = load_checkpoint(two_views)
    device = torch.device("cpu")
    pair = find_pair(checkpoint)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    found = {
        view: make_uncertain_predict(checkpoint.build_predictor(view), pair, device)(image)
        for view in ("first", "second", "mean")
    }
    of_one = {}
    for view in ("first", "second"):
        confidence = found[view].confidences_nhw[0].astype(int)
        of_one[view] = np.where(found[view].masks_nhw[0] == 1, confidence, 255 - confidence)
    mean = (of_one["first"] + of_one["second"]) / 2
    apart = np.abs(of_one["first"] - of_one["second"])
    assert np.abs(np.maximum(mean, 255 - mean) - found["mean"].confidences_nhw[0]).max() <= 1
    assert np.abs(apart - found["mean"].disagreements_nhw[0].astype(int)).max() <= 1
    assert apart.max() > 2, "the two networks are not the same"
    np.testing.assert_array_equal(found["first"].disagreements_nhw, found["mean"].disagreements_nhw)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_command_writes_figures_and_a_diagram_of_two_views(
    two_views: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, figures = tmp_path / f"diagram{suffix}", tmp_path / "figures.json"
    data = f"folder:{two_views.parent / 'data'}"
    options = ["--view", "mean", "--stride", "2", "--json", str(figures), "--plot", str(plot)]
    assert main(["reliability", str(two_views), "--data", data, *options]) == 0
    content = json.loads(figures.read_text(encoding="utf-8"))
    assert content["frames"] == len(content["per_frame"]) == 3
    assert content["pixels"] == 3 * 64 * 96
    assert sum(each["pixels"] for each in content["disagreement"]["bins"]) == content["pixels"]
    assert 0 <= content["disagreement"]["auroc_wrong"] <= 1
    assert "AUROC of a wrong pixel by disagreement" in capsys.readouterr().out
    if suffix == ".svg":
        assert "confidence (probability" in plot.read_text(encoding="utf-8").replace("<!-- ", "")
    else:
        assert cv2.imread(str(plot)).shape[1] > 1500, "three panels side by side"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--view", "third"], "has no view 'third'. Expected one of first, second, mean"),
        (["--plot", "diagram.txt"], "Expected a name that ends in .svg or .png"),
        (["--stride", "0"], "--stride 0"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(
    two_views: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"folder:{two_views.parent / 'data'}"
    assert main(["reliability", str(two_views), "--data", data, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_evaluate_measures_the_view_that_is_named(
    two_views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"folder:{two_views.parent / 'data'}"
    dices = {}
    for view in ("first", "second"):
        arguments = ["--data", data, "--view", view, "--json", str(tmp_path / view)]
        assert main(["evaluate", str(two_views), *arguments]) == 0
        content = json.loads((tmp_path / view).read_text(encoding="utf-8"))
        dices[view] = [frame["dice"] for frame in content["per_frame"]]
    assert dices["first"] != dices["second"]
    assert main(["evaluate", str(two_views), "--data", data, "--view", "predictor"]) == 2
    assert "one of first, second, mean" in capsys.readouterr().err
