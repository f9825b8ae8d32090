"""The commands refuse what they cannot use in one line, and measure a bundle as it will be served."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model_export.__main__ import COMMANDS, main
from model_export.card import read_metric
from service.errors import DataError


@pytest.fixture
def labeled_folder(tmp_path: Path) -> Path:
    """Two videos of bright squares on black; in `b` the label covers half of the square."""
    for video, labeled_width in (("a", 120), ("b", 60)):
        for kind in ("image", "mask"):
            (tmp_path / "frames" / "test" / kind / video).mkdir(parents=True)
        image_hwc, mask_hw = np.zeros((288, 512, 3), np.uint8), np.zeros((288, 512), np.uint8)
        image_hwc[80:200, 200:320] = 220
        mask_hw[80:200, 200 : 200 + labeled_width] = 255
        cv2.imwrite(str(tmp_path / "frames" / "test" / "image" / video / "1.png"), image_hwc)
        cv2.imwrite(str(tmp_path / "frames" / "test" / "mask" / video / "1.png"), mask_hw)
    return tmp_path / "frames"


def test_evaluate_measures_a_bundle_through_its_backend(
    small_bundle: Path, labeled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, overlays = tmp_path / "figures.json", tmp_path / "overlays"
    data = f"folder:{labeled_folder}"
    arguments = ["--data", data, "--json", str(figures), "--overlays", str(overlays)]
    assert main(["evaluate", str(small_bundle), *arguments]) == 0
    content = json.loads(figures.read_text(encoding="utf-8"))
    # Half of the square labeled: Dice 2 * 0.5 / 1.5, IoU 0.5.
    assert content["videos"]["test/a"]["dice"]["mean"] == pytest.approx(1.0)
    assert content["videos"]["test/b"]["dice"]["mean"] == pytest.approx(2 / 3)
    assert content["overall"]["iou"]["mean"] == pytest.approx(0.75)
    assert len(list(overlays.iterdir())) == 2
    assert "overall" in capsys.readouterr().out
    metric = read_metric(figures)
    assert (metric.frames, metric.iou, metric.videos["test/a"]) == (
        2,
        pytest.approx(0.75),
        pytest.approx(1.0),
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"data": 1}', '{"overall": {}, "videos": {}}'])
def test_metrics_that_are_no_evaluation_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "figures.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="holds no evaluation"):
        read_metric(path)


def write_unusable(kind: str, folder: Path) -> Path:
    path = folder / "best.pt"
    if kind == "text":
        path.write_text("not a checkpoint", encoding="utf-8")
    elif kind == "weights":
        torch.save({"conv.weight": torch.zeros(3)}, path)
    elif kind == "future":
        torch.save({"version": 99}, path)
    elif kind == "truncated":
        torch.save({"version": 1, "weights": torch.zeros(10_000)}, path)
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "empty":
        path.touch()
    return path


@pytest.mark.parametrize("kind", ["absent", "empty", "text", "weights", "truncated", "future"])
def test_bundle_refuses_what_is_no_checkpoint(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_unusable(kind, tmp_path)
    assert main(["bundle", str(path), "--out", str(tmp_path / "new")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(path) in message
    assert not (tmp_path / "new").exists()


def test_check_of_nothing_fails_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("surgseg-export: There is no bundle at")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "BUNDLE", "--data", "folder:x"], "without --checkpoint"),
        (["evaluate", "BUNDLE", "--data", "folder:x", "--backend", "abacus"], "no backend called 'abacus'"),
        (["evaluate", "BUNDLE", "--data", "folder:/nowhere"], "There is no folder"),
        (["evaluate", "BUNDLE", "--data", "nothing"], "names no data"),
        (["evaluate", "/nowhere", "--data", "folder:x"], "There is no bundle"),
    ],
)
def test_unusable_arguments_are_refused_in_one_line(
    small_bundle: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(small_bundle) if word == "BUNDLE" else word for word in arguments]) > 0
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert words in message


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["forge"], ["bundle"], ["check", "x", "--limit", "0"]])
def test_a_wrong_command_line_ends_with_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: surgseg-export")
