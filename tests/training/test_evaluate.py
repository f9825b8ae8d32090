"""Evaluation: what is fed is what the service would feed, and the figures and files are those promised."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from service.contract.geometry import fit_image, plan_fit
from service.contract.model_card import InputSize
from tests.training.small_runs import small_recipe, write_bars
from training.__main__ import main
from training.data import open_data
from training.evaluate import draw_comparison, evaluate_samples
from training.trainer import Trainer

SIZE = InputSize(height=64, width=128)  # wider than the frames, so that the letterbox has black sides


def bright_pixels(images_nhwc: np.ndarray) -> np.ndarray:
    return (images_nhwc.mean(axis=3) > 160).astype(np.uint8)


def test_the_network_is_fed_what_the_service_feeds(tmp_path: Path) -> None:
    samples = open_data(f"folder:{write_bars(tmp_path / 'data')}")
    fed: list[np.ndarray] = []

    def predict(images_nhwc: np.ndarray) -> np.ndarray:
        fed.append(images_nhwc.copy())
        return bright_pixels(images_nhwc)

    evaluate_samples(predict, samples, SIZE, "letterbox", progress=False)
    for sample, images_nhwc in zip(samples, fed, strict=True):
        image_hwc, _ = sample.load()
        np.testing.assert_array_equal(images_nhwc[0], fit_image(image_hwc, plan_fit(64, 96, SIZE)))


def test_a_perfect_predictor_scores_one_and_a_blind_one_nothing(tmp_path: Path) -> None:
    samples = open_data(f"folder:{write_bars(tmp_path / 'data')}")
    perfect = evaluate_samples(bright_pixels, samples, SIZE, "letterbox", progress=False).to_json()
    blind = evaluate_samples(
        lambda x: np.zeros(x.shape[:3], np.uint8), samples, SIZE, "letterbox", progress=False
    )
    for metric in ("dice", "iou", "nsd"):
        assert perfect["overall"][metric]["mean"] == pytest.approx(1.0)
        assert blind.to_json()["overall"][metric]["mean"] == 0.0


def test_the_commands_write_json_table_and_overlays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(small_recipe(tmp_path), tmp_path / "run").run(progress=False, stop_at=1)
    code = main([
        "evaluate", str(tmp_path / "run" / "last.pt"), "--data", f"folder:{tmp_path / 'data'}",
        "--json", str(tmp_path / "figures" / "out.json"), "--overlays", str(tmp_path / "overlays"), "--stride", "2",
    ])  # fmt: skip
    assert code == 0
    figures = json.loads((tmp_path / "figures" / "out.json").read_text())
    assert figures["frames"] == 3
    assert 0 <= figures["overall"]["dice"]["mean"] <= 1
    assert set(figures["videos"]) == {"train"}
    assert figures["videos"]["train"]["iou"]["mean"] == pytest.approx(figures["overall"]["iou"]["mean"])
    pictures = list((tmp_path / "overlays").iterdir())
    assert len(pictures) == 3 and all(cv2.imread(str(path)) is not None for path in pictures)
    assert "overall" in capsys.readouterr().out


def test_the_comparison_shows_agreement_misses_and_inventions() -> None:
    image_hwc = np.full((4, 4, 3), 100, np.uint8)
    predicted, true = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    predicted[0], true[0] = 1, 1
    predicted[1] = 1
    true[2] = 1
    shown = draw_comparison(image_hwc, predicted, true)
    assert shown[0, 0].argmax() == 1  # green: agreed
    assert shown[1, 0].argmax() == 0  # red: invented
    assert shown[2, 0].argmax() == 2  # blue: missed
    assert (shown[3, 0] == 100).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no_such_recipe"], "There is no recipe"),
        (["evaluate", "no.pt", "--data", "folder:x"], "There is no checkpoint"),
    ],
)
def test_a_wrong_command_ends_with_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_recipe(tmp_path)
    command = ["run", str(tmp_path / "bars.toml"), "--out", str(tmp_path / "run"), "--set", "steps=2"]
    assert main(command) == 0
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
