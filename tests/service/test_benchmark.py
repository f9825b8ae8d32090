"""`surgseg bench`: its figures come from real runs, add up, and are written where asked and nowhere else."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bench import command
from service.bench.figures import ENCODED, ROUND_TRIP, SEND, SENT
from service.bench.material import encode_video, load_images, make_material
from service.bench.memory_runs import BARE, PIPELINE, SOCKET
from service.bench.model_runs import measure_model, open_decoder
from service.bench.post_runs import OURS, PLAIN
from service.bench.scenarios import StreamSpec
from service.contract.bundle import open_bundle
from service.errors import InvalidRequestError, StreamError, SurgsegError, UnavailableError
from service.recording import VideoWriter
from service.streams.access_units import inspect_unit


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(list(options))


def measure(out: Path, *options: str) -> dict[str, Any]:
    """Run the benchmark; its report."""
    assert command.run(parse(*options, "--json", str(out))) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def save_video(path: Path) -> Path:
    with VideoWriter(path, Fraction(25)) as writer:
        for number in range(8):
            writer.write(np.full((96, 128, 3), 30 * number, np.uint8), number / 25)
    return path


def check_run(run: dict[str, Any]) -> None:
    """Every frame is accounted for, and every figure is where it must be."""
    assert run["gaps"] == []
    assert run["received"] == run["pushed"] == run["segmented"] + sum(run["dropped"].values())
    assert {"decode", "prepare", "wait", "infer", "encode", ENCODED, SEND, SENT, ROUND_TRIP} == set(run["ms"])
    for figures in run["ms"].values():
        assert 0 <= figures["p50"] <= figures["p95"] <= figures["p99"] <= figures["p99.9"] <= figures["max"]
    for rank in ("p50", "p99"):
        assert run["ms"][ENCODED][rank] <= run["ms"][SENT][rank] <= run["ms"][ROUND_TRIP][rank]


def test_the_whole_benchmark_against_a_service_of_its_own(
    small_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    out, plot = tmp_path / "figures.json", tmp_path / "figures.svg"
    options = ("--bundle", str(small_bundle), "--size", "320x180", "--plot", str(plot))
    report = measure(out, *options, "--seconds", "2", "--streams", "2", "--fps", "10")
    assert report["model"]["name"] == "small-threshold"
    assert report["model"]["frames_per_s"] > 0
    (phase,) = report["service"]["phases"]
    (run,) = phase["runs"]
    assert len(run["streams"]) == 2
    assert run["pushed"] == 40
    check_run(run)
    assert 0 < run["fairness"]["ratio"] <= 1
    assert run["client"]["cores"] > 0
    assert run["usage"]["service_mib"]["most"] > 10, "a process of its own is one whose memory we see"
    assert plot.read_text().startswith("<svg")
    printed = capsys.readouterr().out
    words = ("synthetic scene, 320 x 180", "alone", "round trip", "received 40", "fairness", "MiB", "client:")
    assert [word for word in words if word not in printed] == []
    assert sorted(tmp_path.iterdir()) == [out, plot]


def test_a_running_service_and_a_video_of_one_s_own(server: Any, small_bundle: Path, tmp_path: Path) -> None:
    video = save_video(tmp_path / "clip.mp4")
    options = ("--bundle", str(small_bundle), "--url", server.ws_url, "--video", str(video), "--seconds", "1")
    report = measure(tmp_path / "figures.json", *options, "--codec", "png", "--arrivals", "poisson")
    assert "model" not in report, "the model of another machine cannot be timed here"
    (material,) = report["service"]["material"]
    assert material.startswith("8 frames of clip.mp4, 128 x 96, png")
    check_run(report["service"]["phases"][0]["runs"][0])


@pytest.mark.slow
def test_a_scenario_with_sources_that_misbehave(small_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    options = ("--scenario", "disturbed", "--size", "320x180", "--seconds", "3", "--rounds", "1")
    report = measure(tmp_path / "figures.json", "--bundle", str(small_bundle), *options)
    alone, beside_good, disturbed = (phase["runs"][0] for phase in report["service"]["phases"])
    for run in (alone, beside_good, disturbed):
        check_run(run)
    streams = {stream["behaviour"]: stream for stream in disturbed["streams"]}
    assert streams["stalled"]["pushed"] == 25, "it is pushed for one second, and then no more"
    assert streams["reconnecting"]["connections"] >= 2
    assert disturbed["dropped"].get("undecodable", 0) > 0
    assert "of the first" in capsys.readouterr().out


@pytest.mark.slow
def test_streams_that_are_refused_are_named_with_their_reason(
    launch_server: Callable[..., Any], small_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    server = launch_server(SURGSEG_MAX_STREAMS="1")
    options = ("--url", server.url, "--scenario", "overload-8x1080p30-h264", "--streams", "2")
    size = ("--codec", "jpeg", "--size", "64x64", "--fps", "10", "--seconds", "2")
    report = measure(tmp_path / "figures.json", *options, *size)
    (phase,) = report["service"]["phases"]
    assert report["service"]["left_out"] == ["without admission"]
    (run,) = phase["runs"]
    check_run(run)
    assert run["refused"] == 1
    assert "SURGSEG_MAX_STREAMS" in run["streams"][1]["refusal"]
    assert "refused: 1 streams are open" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_frames_in_memory_go_through_every_contender(small_bundle: Path, tmp_path: Path, codec: str) -> None:
    options = ("--bundle", str(small_bundle), "--size", "128x96", "--codec", codec)
    report = measure(
        tmp_path / "figures.json", *options, "--scenario", "memory", "--seconds", "0.5", "--rounds", "1"
    )
    medians = report["memory"]["median_frames_per_s"]
    assert all(medians[name] > 0 for name in (BARE, PIPELINE, SOCKET))
    assert report["memory"]["of_bare_loop"][SOCKET] == pytest.approx(medians[SOCKET] / medians[BARE])


@pytest.mark.slow
def test_posts_are_compared_with_a_plain_endpoint_of_the_same_network(
    small_bundle: Path, tmp_path: Path
) -> None:
    options = ("--bundle", str(small_bundle), "--size", "128x96", "--seconds", "0.5", "--rounds", "1")
    report = measure(tmp_path / "figures.json", *options, "--scenario", "post-720p")
    for clients in ("1", "8"):
        figures = report["post"]["clients"][clients]
        medians = figures["median_requests_per_s"]
        assert min(medians.values()) > 0
        assert figures["of_best_plain"] <= medians[OURS] / medians[PLAIN]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_video_is_encoded_as_access_units_with_a_key_frame_every_second(codec: str) -> None:
    spec = StreamSpec(codec, 128, 96, 10)
    units = make_material(spec, None)
    infos = [inspect_unit(unit, codec) for unit in units]
    assert len(units) == 30
    assert [number for number, info in enumerate(infos) if info.is_key] == [0, 10, 20]
    assert infos[10].parameters, "a decoder that starts here needs them"


def test_a_short_video_is_repeated_and_scaled(small_bundle: Path, tmp_path: Path) -> None:
    video = save_video(tmp_path / "clip.mp4")
    units = make_material(StreamSpec("h264", 256, 192, 25), video)
    assert len(units) == 75
    fit_payload = open_decoder(open_bundle(small_bundle), "h264")
    fitted = fit_payload(units[0])
    assert fitted is not None
    assert (fitted[1].source_width, fitted[1].source_height) == (256, 192)
    with pytest.raises(InvalidRequestError, match="even"):
        encode_video(load_images(video, (255, 192), 25), StreamSpec("h264", 255, 192, 25))


def test_the_model_alone_is_timed_run_by_run(small_bundle: Path) -> None:
    canvases = [np.zeros((1, 288, 512, 3), np.uint8)] * 3
    figures = measure_model(open_bundle(small_bundle), "onnxruntime-cpu", canvases, 0.2)
    assert figures["runs"] >= 1
    assert figures["ms"]["p50"] <= figures["ms"]["p99"] <= figures["ms"]["max"]
    assert 1e3 / figures["frames_per_s"] <= figures["ms"]["max"]
    assert (figures["backend"], figures["input"]) == ("onnxruntime-cpu", [512, 288])


@pytest.mark.parametrize(
    "options",
    [
        ("--seconds", "0"),
        ("--streams", "0"),
        ("--fps", "-1"),
        ("--fps", "nan"),
        ("--size", "big"),
        ("--size", "10x10x3"),
        ("--warm-up", "-1"),
        ("--plot", "figures.png"),
        ("--scenario", "memory", "--url", "http://127.0.0.1:9"),
        ("--scenario", "disturbed", "--streams", "2"),
    ],
)
def test_impossible_options_are_one_clear_error(small_bundle: Path, options: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequestError):
        command.run(parse("--bundle", str(small_bundle), *options))


def test_what_cannot_be_measured_is_one_clear_error(small_bundle: Path, tmp_path: Path) -> None:
    bundle = ("--bundle", str(small_bundle))
    with pytest.raises(StreamError, match="There is no file"):
        command.run(parse(*bundle, "--video", str(tmp_path / "absent.mp4")))
    with pytest.raises(UnavailableError, match="does not answer"):
        command.run(parse(*bundle, "--url", "http://127.0.0.1:9", "--size", "64x64"))
    with pytest.raises(SurgsegError):
        command.run(parse("--bundle", str(tmp_path / "absent")))


def test_a_service_that_does_not_start_is_one_clear_error(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGSEG_MAX_PIXELS", "no number")
    with pytest.raises(UnavailableError, match="SURGSEG_MAX_PIXELS"):
        command.run(parse("--bundle", str(small_bundle), "--seconds", "0.1", "--size", "64x64"))
