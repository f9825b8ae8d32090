"""Pushing a video at its own rate: the times frames are due, and the figures that come back."""

from __future__ import annotations

import argparse
import math
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import push
from service.client import Client
from service.contract.masks import from_png
from service.errors import InvalidRequestError, StreamError
from service.push import PushReport, format_table, push_pictures, summarize, time_video
from service.recording import VideoWriter
from service.wire import encode_picture


def save_video(path: Path, times: list[float]) -> Path:
    with VideoWriter(path, Fraction(25)) as writer:
        for number, pts_s in enumerate(times):
            writer.write(np.full((96, 128, 3), 10 * number, np.uint8), pts_s)
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
