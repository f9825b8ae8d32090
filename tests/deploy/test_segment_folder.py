"""deploy/ray/segment_folder.py: what is left to do, one recording whole or not at all, and the real thing with Ray."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import DataError
from service.offline import Request, Segmenter, segment_source
from service.recording import VideoWriter
from tests.conftest import REPOSITORY

PROGRAM = REPOSITORY / "deploy" / "ray" / "segment_folder.py"
specification = importlib.util.spec_from_file_location("segment_folder", PROGRAM)
assert specification is not None and specification.loader is not None
segment_folder = importlib.util.module_from_spec(specification)
specification.loader.exec_module(segment_folder)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings, one in a folder of its own, one that is none, and a text."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "day").mkdir()
    for number, name in enumerate(("a.mp4", "day/a.mp4")):
        with VideoWriter(folder / name, Fraction(25)) as writer:
            for level in range(0, 250, 50):
                writer.write(np.full((96, 128, 3), level + number, np.uint8), level / 1250)
    (folder / "broken.mp4").write_text("no video")
    (folder / "notes.txt").write_text("no recording")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected_files(bundle: Path, source: Path, out: Path) -> dict[str, bytes]:
    with Segmenter(bundle) as segmenter:
        segment_source(segmenter, Request(source, out, "png", False))
    return files_of(out)


def test_what_is_done_is_left_out_and_leftovers_go(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "day" / "a.mp4").mkdir(parents=True)
    (tmp_path / "day" / ".b.mp4.7.partial").mkdir()
    jobs, done = segment_folder.plan_recordings(recordings, tmp_path)
    assert ([job["name"] for job in jobs], done) == (["a.mp4", "broken.mp4"], 1)
    segment_folder.remove_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "day").iterdir()] == ["a.mp4"]
    with pytest.raises(DataError, match="no recordings"):
        segment_folder.plan_recordings(tmp_path, tmp_path / "out")


def test_a_recording_is_there_whole_or_not_at_all(
    small_bundle: Path, recordings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    worker = segment_folder.RecordingSegmenter(str(out), str(small_bundle), "auto", False)
    rows: dict[str, Any] = {}
    for job in segment_folder.plan_recordings(recordings, out)[0]:
        row = worker(job)
        rows[row["name"]] = (row["frames"], bool(row["failure"]))
    assert rows == {"a.mp4": (5, False), "broken.mp4": (0, True), "day/a.mp4": (5, False)}
    assert sorted(path.name for path in out.iterdir()) == ["a.mp4", "day"]
    source = recordings / "day" / "a.mp4"
    assert files_of(out / "day" / "a.mp4") == expected_files(small_bundle, source, tmp_path / "plain")


@pytest.mark.slow
def test_ray_gives_the_masks_of_surgseg_segment(small_bundle: Path, recordings: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    order = [sys.executable, str(PROGRAM), str(recordings), "--out", str(tmp_path / "out")]
    order += ["--bundle", str(small_bundle), "--no-overlay"]
    told = subprocess.run(order, cwd=REPOSITORY, capture_output=True, text=True, timeout=150)
    assert told.returncode == 1, told.stderr
    assert "broken.mp4: failed" in told.stdout
    for name in ("a.mp4", "day/a.mp4"):
        plain = expected_files(small_bundle, recordings / name, tmp_path / "plain" / name)
        assert files_of(tmp_path / "out" / name) == plain
    again = subprocess.run(order, cwd=REPOSITORY, capture_output=True, text=True, timeout=150)
    assert "1 recordings to segment, 2 are done already" in again.stdout
