"""`surgseg bench`: its figures come from real runs, add up, and are written where asked and nowhere else."""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import benchmark
from service.contract.bundle import open_bundle
from service.errors import InvalidRequestError, StreamError, SurgsegError, UnavailableError
from service.recording import VideoWriter


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(list(options))


def save_video(path: Path) -> Path:
    with VideoWriter(path, Fraction(25)) as writer:
        for number in range(8):
            writer.write(np.full((96, 128, 3), 30 * number, np.uint8), number / 25)
    return path


def check_service(service: dict[str, Any]) -> None:
    assert service["received"] == service["pushed"]
    assert service["received"] == service["answered"] + sum(service["dropped"].values()) + service["skipped"]
    assert {"decode", "prepare", "wait", "infer", "encode", "in the service", "round trip"} == set(
        service["ms"]
    )
    for figures in service["ms"].values():
        assert 0 <= figures["p50"] <= figures["p95"] <= figures["p99"] <= figures["p99.9"] <= figures["max"]
    assert service["ms"]["in the service"]["p50"] < service["ms"]["round trip"]["p50"]


def test_the_whole_benchmark_against_a_service_of_its_own(
    small_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "figures.json"
    options = (
        "--bundle",
        str(small_bundle),
        "--seconds",
        "1",
        "--streams",
        "2",
        "--fps",
        "10",
        "--size",
        "320x180",
    )
    assert benchmark.run(parse(*options, "--json", str(out))) == 0
    report = json.loads(out.read_text())
    assert report["model"]["name"] == "small-threshold"
    assert report["model"]["frames_per_s"] > 0
    assert report["model"]["ms"]["p50"] > 0
    assert report["service"]["streams"] == 2
    assert report["service"]["pushed"] == 20
    check_service(report["service"])
    printed = capsys.readouterr().out
    assert all(
        word in printed for word in ("synthetic scene, 320 x 180", "alone", "round trip", "received 20")
    )
    assert list(tmp_path.iterdir()) == [out]


def test_a_running_service_and_a_video_of_one_s_own(server: Any, small_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    video = save_video(tmp_path / "clip.mp4")
    options = ("--bundle", str(small_bundle), "--url", server.url, "--video", str(video), "--seconds", "1")
    assert benchmark.run(parse(*options, "--codec", "png", "--json", str(out))) == 0
    report = json.loads(out.read_text())
    assert "model" not in report, "the model of another machine cannot be timed here"
    assert report["material"] == "8 frames of clip.mp4, 128 x 96"
    check_service(report["service"])


def test_the_model_alone_is_timed_run_by_run(small_bundle: Path) -> None:
    canvases = [np.zeros((1, 288, 512, 3), np.uint8)] * 3
    figures = benchmark.measure_model(open_bundle(small_bundle), "onnxruntime", canvases, 0.2)
    assert figures["runs"] >= 1
    assert figures["ms"]["p50"] <= figures["ms"]["p99"] <= figures["ms"]["max"]
    assert 1e3 / figures["frames_per_s"] <= figures["ms"]["max"]
    assert (figures["backend"], figures["input"]) == ("onnxruntime", [512, 288])


@pytest.mark.parametrize(
    "options",
    [
        ("--seconds", "0"),
        ("--streams", "0"),
        ("--fps", "-1"),
        ("--fps", "nan"),
        ("--size", "big"),
        ("--size", "10x10x3"),
    ],
)
def test_impossible_options_are_one_clear_error(small_bundle: Path, options: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequestError):
        benchmark.run(parse("--bundle", str(small_bundle), *options))


def test_what_cannot_be_measured_is_one_clear_error(small_bundle: Path, tmp_path: Path) -> None:
    bundle = ("--bundle", str(small_bundle))
    with pytest.raises(StreamError, match="There is no file"):
        benchmark.run(parse(*bundle, "--video", str(tmp_path / "absent.mp4")))
    with pytest.raises(UnavailableError, match="does not answer"):
        benchmark.run(parse(*bundle, "--url", "http://127.0.0.1:9", "--size", "64x64"))
    with pytest.raises(SurgsegError):
        benchmark.run(parse("--bundle", str(tmp_path / "absent")))


def test_a_service_that_does_not_start_is_one_clear_error(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGSEG_MAX_PIXELS", "no number")
    with pytest.raises(UnavailableError, match="SURGSEG_MAX_PIXELS"):
        benchmark.run(parse("--bundle", str(small_bundle), "--seconds", "0.1", "--size", "64x64"))
