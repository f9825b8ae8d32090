"""Pushing a video at its own rate: the times frames are due, and the figures that come back."""

from __future__ import annotations

import argparse
import math
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from service import push
from service.client import Client
from service.contract.masks import from_png
from service.errors import InvalidRequestError, StreamError
from service.push import PushReport, format_table, push_pictures, summarize, time_units, time_video
from service.recording import VideoWriter
from service.streams.access_units import inspect_unit
from service.unanswered import Gap, Loss, Move
from service.wire import encode_picture


def save_video(path: Path, times: list[float]) -> Path:
    with VideoWriter(path, Fraction(25)) as writer:
        for number, pts_s in enumerate(times):
            writer.write(np.full((96, 128, 3), 10 * number, np.uint8), pts_s)
    return path


def save_units(path: Path, codec: str, count: int = 20, *, reorders: bool = False) -> Path:
    """A video of `codec` with a key frame every ten pictures, 25 a second."""
    encoder = {"h264": "libx264", "hevc": "libx265", "mpeg4": "mpeg4"}[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.gop_size = 10
        options = {
            "libx264": {"bf": "2" if reorders else "0"},
            "libx265": {"x265-params": "bframes=0:log-level=0"},
        }
        stream.options = options.get(encoder, {})
        for number in range(count):
            image_hwc = np.full((96, 128, 3), 10 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(image_hwc, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def run(path: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    push.add_arguments(parser)
    return push.run(parser.parse_args([str(path), *options]))


def test_frames_are_due_at_their_own_times_from_the_first_on(tmp_path: Path) -> None:
    path = save_video(tmp_path / "clip.mp4", [1.0, 1.04, 1.12, 1.16])
    assert [due_s for due_s, _ in time_video(path, None, 1)] == pytest.approx([0, 0.04, 0.12, 0.16], abs=1e-4)


def test_a_given_rate_wins_over_the_file_s_times(tmp_path: Path) -> None:
    path = save_video(tmp_path / "clip.mp4", [1.0, 1.04, 1.12])
    assert [due_s for due_s, _ in time_video(path, 10, 1)] == pytest.approx([0, 0.1, 0.2])


def test_loops_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    path = save_video(tmp_path / "clip.mp4", [0.0, 0.04, 0.08])
    due = [due_s for due_s, _ in time_video(path, None, 3)]
    assert due == pytest.approx([number * 0.04 for number in range(9)], abs=1e-4)


def test_percentiles_are_those_of_the_values() -> None:
    figures = summarize(range(1001))
    assert figures == pytest.approx({"p50": 500, "p95": 950, "p99": 990, "p99.9": 999, "max": 1000})
    assert all(math.isnan(value) for value in summarize([]).values())


def test_a_table_has_a_row_for_each_name_and_its_columns_aligned() -> None:
    lines = format_table({"decode": summarize([1, 2]), "infer": summarize([1000, 2000])}).splitlines()
    assert [line.split()[0] for line in lines] == ["ms", "decode", "infer"]
    assert len({len(line) for line in lines}) == 1


def test_pictures_go_out_when_they_are_due_and_every_answer_is_counted(server: Any) -> None:
    picture = encode_picture(np.full((72, 128, 3), 200, np.uint8), "jpeg")
    progress: list[int] = []
    with Client(server.url) as client, client.stream() as stream:
        started_at = time.monotonic()
        report = push_pictures(
            stream,
            ((number / 20, picture) for number in range(30)),
            on_progress=lambda so_far: progress.append(so_far.pushed),
        )
        assert time.monotonic() - started_at >= 29 / 20
        report.settle(client, stream)
    assert report.pushed == report.received == 30
    assert report.answered + sum(report.dropped.values()) + report.skipped + report.unread == 30
    assert (
        len(report.round_trip_ms)
        == len(report.service_ms)
        == len(report.stages_ms["infer"])
        == report.answered
    )
    assert all(
        0 < inside < outside for inside, outside in zip(report.service_ms, report.round_trip_ms, strict=True)
    )
    assert progress
    assert "infer" in report.table()


def test_the_command_pushes_a_file_and_writes_its_masks(server: Any, tmp_path: Path, capsys: Any) -> None:
    path = save_video(tmp_path / "clip.mp4", [number / 25 for number in range(10)])
    options = ("--url", server.ws_url, "--mode", "every", "--loop", "2", "--out", str(tmp_path / "out"))
    assert run(path, *options) == 0
    masks = sorted((tmp_path / "out").iterdir())
    assert [mask.name for mask in masks] == [f"{number:06d}.png" for number in range(1, 21)]
    assert from_png(masks[0].read_bytes()).shape == (288, 384)
    assert "pushed 20" in capsys.readouterr().out


@pytest.mark.parametrize("options", [("--loop", "0"), ("--fps", "0"), ("--fps", "-5"), ("--fps", "nan")])
def test_impossible_options_are_one_clear_error(tmp_path: Path, options: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequestError):
        run(tmp_path / "clip.mp4", *options)


def test_a_file_that_is_no_video_is_found_out_before_a_stream_is_opened(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="There is no file"):
        run(tmp_path / "absent.mp4", "--url", "ws://127.0.0.1:9")


def test_an_empty_report_still_prints() -> None:
    assert "out   0.0 fps" in PushReport().line()


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("hevc", "mp4"), ("h264", "ts")])
def test_access_units_leave_a_file_as_they_are_with_a_start_code_and_their_times(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    path = save_units(tmp_path / f"clip.{suffix}", codec)
    timed = list(time_units(path, codec, None, 2))
    assert [due_s for due_s, _ in timed] == pytest.approx([number / 25 for number in range(40)], abs=1e-3)
    units = [unit for _, unit in timed if isinstance(unit, bytes)]
    infos = [inspect_unit(unit, codec) for unit in units]
    assert [number for number, info in enumerate(infos) if info.is_key] == [0, 10, 20, 30]
    assert all(info.parameters for info in infos if info.is_key), "each key frame brings its parameter sets"
    assert units[:20] == units[20:]
    context = av.CodecContext.create(codec, "r")
    decoded = [frame for unit in [*units[:20], None] for frame in context.decode(unit and av.Packet(unit))]
    assert len(decoded) == 20


def test_access_units_come_at_a_given_rate(tmp_path: Path) -> None:
    path = save_units(tmp_path / "clip.mp4", "h264", 3)
    assert [due_s for due_s, _ in time_units(path, "h264", 10, 1)] == pytest.approx([0, 0.1, 0.2])


def test_a_file_is_pushed_undecoded(server: Any, tmp_path: Path, capsys: Any) -> None:
    path = save_units(tmp_path / "clip.mp4", "h264")
    out = tmp_path / "masks"
    options = ("--url", server.url, "--codec", "h264", "--mode", "every", "--out", str(out))
    assert run(path, *options) == 0
    assert "pushed 20" in capsys.readouterr().out
    masks = {int(file.stem): from_png(file.read_bytes()).mean() for file in out.glob("*.png")}
    assert sorted(masks) == list(range(1, 21))
    # picture k has brightness 10 (k - 1), and the model of the small bundle is 1 above 127
    assert all(masks[number] < 0.1 for number in range(1, 12))
    assert all(masks[number] > 0.9 for number in range(16, 21))


def test_a_file_of_another_codec_is_one_clear_error(tmp_path: Path) -> None:
    path = save_units(tmp_path / "clip.mp4", "mpeg4")
    with pytest.raises(InvalidRequestError, match="holds mpeg4") as raised:
        run(path, "--codec", "h264")
    assert "--codec jpeg" in raised.value.remedy
    with pytest.raises(InvalidRequestError, match="holds h264"):
        next(time_units(save_units(tmp_path / "other.mp4", "h264"), "hevc", None, 1))


def test_reordered_pictures_cannot_all_be_waited_for(tmp_path: Path) -> None:
    path = save_units(tmp_path / "clip.mp4", "h264", reorders=True)
    with pytest.raises(InvalidRequestError, match="B-frames"):
        run(path, "--codec", "h264", "--mode", "every")
    dues = [due_s for due_s, _ in time_units(path, "h264", None, 1)]
    assert dues == sorted(dues), "in the order of decoding"


def test_the_report_says_where_the_stream_went() -> None:
    report = PushReport(pushed=9, answered=7, elapsed_s=1.0, dropped={"superseded": 1})
    report.moves.append(Move("The service is shutting down.", "ws://b:1", 2.0, 2.25, has_other_model=True))
    report.gaps.append(Gap("The connection was lost.", "ws://c:1", 3.0, 3.5, Loss(1, (5, 5), (50, 50))))
    lines = report.table().splitlines()
    assert lines[2] == (
        "moved to ws://b:1 in 0.25 s: no frame without an answer, another model. The service is shutting down."
    )
    assert lines[3].startswith("gap of 0.50 s: 1 frames without an answer (5 to 5)")
