"""`surgseg replay`: which mask goes on which frame, and everything that can be wrong with record and video."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.__main__ import main
from service.audit.entries import DropEntry, Entry, MaskEntry, ModelEntry, OpenedEntry
from service.audit.folder import RecordFolder
from service.audit.matching import NOT_RECORDED, NumberMatching, TimeMatching
from service.audit.shelf import KeepRules
from service.audit.writer import RecordWriter
from service.contract.masks import to_rle
from service.contract.model_card import ClassInfo
from service.overlay import draw_overlay
from service.recording import VideoWriter
from service.streams.video import read_video

REPOSITORY = Path(__file__).resolve().parents[2]
AT = datetime(2026, 1, 18, tzinfo=UTC)
CLASSES = (
    ClassInfo(id=0, name="background", colour=(0, 0, 0)),
    ClassInfo(id=1, name="instrument", colour=(0, 200, 255)),
)
MODEL = ModelEntry(
    at=AT, fingerprint="f" * 64, name="m", version="1", backend="b", precision="int8", runtime_version="1",
    sha256="s", classes=CLASSES,
)  # fmt: skip
WIDTH, HEIGHT, COUNT, FPS = 128, 96, 8, 10


def column_mask(number: int) -> np.ndarray:
    """A mask of one column, an eighth of the picture's size, that tells its number."""
    mask_hw = np.zeros((HEIGHT // 8, WIDTH // 8), np.uint8)
    mask_hw[:, number] = 1
    return mask_hw


def mask(
    sequence: int, pts_s: float | None = None, number: int | None = None, **changed: object
) -> MaskEntry:
    rle = to_rle(column_mask(sequence if number is None else number))
    facts = {"width": WIDTH, "height": HEIGHT, "model": MODEL.fingerprint, "mask": rle, **changed}
    return MaskEntry(
        at=AT, stream="stream-1", sequence=sequence, pts_s=pts_s, captured_at_us=0, latency_ms={"infer": 2.0},
        **facts,
    )  # fmt: skip


def drop(sequence: int, reason: str = "superseded", pts_s: float | None = None) -> DropEntry:
    return DropEntry(at=AT, stream="stream-1", sequence=sequence, reason=reason, pts_s=pts_s)


def opened(codec: str = "png") -> OpenedEntry:
    return OpenedEntry(at=AT, stream="stream-1", name="", origin="pushed", codec=codec, mode="latest")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """`COUNT` grey frames, 10 a second, the first at 0 s."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, Fraction(FPS)) as writer:
        for number in range(COUNT):
            writer.write(np.full((HEIGHT, WIDTH, 3), 100, np.uint8), number / FPS)
    return path


@pytest.fixture
def record(tmp_path: Path) -> Callable[[Sequence[Entry]], str]:
    """A function that writes a record of entries, and gives its folder."""

    def write(entries: Sequence[Entry]) -> str:
        folder = tmp_path / "audit"
        rules = KeepRules(keep_s=1e12, max_bytes=2**30, file_bytes=2**20)
        writer = RecordWriter(RecordFolder(folder), rules, clock=time.time, on_deleted=lambda cause: None)
        writer.write(entries)
        writer.close()
        return str(folder)

    return write


def replay(*arguments: object) -> int:
    return main(["replay", *map(str, arguments)])


def drawn_columns(video: Path) -> list[int | None]:
    """Per frame, which column the overlay marks."""
    columns: list[int | None] = []
    for frame in read_video(video):
        blueness = frame.image_hwc[40:].astype(int)[:, :, 2] - frame.image_hwc[40:].astype(int)[:, :, 0]
        marked = np.flatnonzero(blueness.mean(axis=0) > 30)
        columns.append(round((marked.mean() - 3.5) / 8) if marked.size else None)
    return columns


def test_pictures_are_matched_by_number_and_a_frame_without_a_mask_shows_why(
    record: Callable[..., str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record([MODEL, opened(), mask(1), drop(2), mask(3), drop(4, "deadline"), mask(6)])
    assert replay(folder, "--video", clip, "-o", tmp_path / "out.mp4") == 0
    assert drawn_columns(tmp_path / "out.mp4") == [1, None, 3, None, None, 6, None, None]
    printed = capsys.readouterr().out
    assert "3 of 3 masks drawn, 1 no mask: superseded, 1 no mask: deadline, 3 not in the record" in printed
    frames = [frame.image_hwc for frame in read_video(tmp_path / "out.mp4")]
    assert frames[1][:40].max() > 200, "the reason is written on it"
    sources = [frame.image_hwc for frame in read_video(clip)]
    expected = draw_overlay(sources[0], column_mask(1).repeat(8, 0).repeat(8, 1), CLASSES)
    assert np.abs(frames[0].astype(int) - expected).mean() < 3


def test_pulled_streams_are_matched_by_time_and_a_shift_is_the_nearest_frame(
    record: Callable[..., str], clip: Path, tmp_path: Path
) -> None:
    """The service numbered the frames from where it began, which is not where the file begins."""
    folder = record([MODEL, opened(""), mask(1, 0.3), drop(2, "behind"), mask(3, 0.5), mask(4, 0.6001)])
    assert replay(folder, "--video", clip, "-o", tmp_path / "out.mp4") == 0
    assert drawn_columns(tmp_path / "out.mp4") == [None, None, None, 1, None, 3, 4, None]
    assert replay(folder, "--video", clip, "-o", tmp_path / "shifted.mp4", "--shift", -0.23) == 0
    assert drawn_columns(tmp_path / "shifted.mp4") == [None, 1, None, 3, 4, None, None, None]


def test_a_record_cut_short_and_a_damaged_one_are_drawn_as_far_as_they_go(
    record: Callable[..., str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(record([MODEL, opened(), mask(1)]))
    file = next(folder.glob("*.gz"))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:30])
    assert replay(folder, "--video", clip, "-o", tmp_path / "out.mp4") == 0
    assert ": cut: " in capsys.readouterr().err
    file.write_bytes(b"spilt" + whole)
    assert replay(folder) == 1
    assert ": damaged: " in capsys.readouterr().out


def test_a_summary_counts_frames_drops_models_and_what_is_missing(
    record: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(record([MODEL, opened(), mask(1), drop(2), mask(5)])) == 0
    printed = capsys.readouterr().out
    assert "frames 1 to 5: 2 masks, 1 superseded, 2 missing" in printed
    assert "2 masks by m 1, b, int8 (ffffffffffff)" in printed
    assert "not closed in this record" in printed
    assert [line.split() for line in printed.splitlines() if "infer" in line] == [["infer", *["2.00"] * 5]]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([MODEL, opened(), mask(1, width=64)], "The video's frames are 128 x 96"),
        ([opened(), mask(1)], "does not describe the model"),
        ([MODEL, opened(), mask(1, mask={"size": [12, 16], "segments": [{"class_id": 1, "counts": "5"}]})], "cannot"),
        ([MODEL, opened(), mask(1, mask={"size": "x"})], "cannot be drawn"),
        ([MODEL, opened(), mask(1, mask=to_rle(7 * column_mask(1)))], "class 7"),
        ([MODEL, opened(""), mask(1, 77.0)], "No frame of"),
        ([MODEL, opened(), drop(1)], "0 streams with masks"),
        ([MODEL, opened(), mask(1), mask(1).model_copy(update={"stream": "stream-2"})], "2 streams with masks"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_clear_error_and_leaves_no_file(
    record: Callable[..., str],
    clip: Path,
    tmp_path: Path,
    entries: list[Entry],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert replay(record(entries), "--video", clip, "-o", tmp_path / "out.mp4") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("Expected") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "clip.mp4"]


def test_bad_arguments_are_one_clear_error(
    record: Callable[..., str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record([MODEL, opened(), mask(1)])
    assert replay(folder, "--video", clip) == 2
    assert replay(folder, "--video", clip, "-o", clip) == 2
    assert replay(folder, "--video", clip, "-o", tmp_path / "out.mp4", "--shift", 1) == 2
    assert replay(tmp_path / "absent") == 2
    assert replay(folder, "--video", tmp_path / "absent.mp4", "-o", tmp_path / "out.mp4") == 2
    assert capsys.readouterr().err.count("Expected") == 5


@given(kept=st.lists(st.booleans(), min_size=1, max_size=20), shift=st.integers(-5, 5))
def test_a_mask_is_never_matched_to_another_frame(kept: list[bool], shift: int) -> None:
    endings = [
        mask(number + 1, (number - shift) / 25, number=0) if is_kept else drop(number + 1, "behind")
        for number, is_kept in enumerate(kept)
    ]
    by_number = NumberMatching(endings)
    by_time = TimeMatching(endings, shift_s=shift / 25)
    by_order = TimeMatching(
        [ending.model_copy(update={"pts_s": None}) for ending in endings],
        times_s=[number / 25 for number in range(len(kept))],
    )
    for number, is_kept in enumerate(kept):
        for matching in (by_number, by_time, by_order):
            found = matching.find(number + 1, number / 25)
            if is_kept:
                assert isinstance(found, MaskEntry)
                assert found.sequence == number + 1
            else:
                assert found == "no mask: behind"
    assert by_number.find(len(kept) + 1, None) == NOT_RECORDED
    assert isinstance(by_time.find(1, None), str)


def test_output_that_nobody_reads_to_its_end_is_no_traceback(record: Callable[..., str]) -> None:
    many = [mask(1).model_copy(update={"stream": f"stream-{number}"}) for number in range(200)]
    command = [sys.executable, "-m", "service", "replay", record([MODEL, *many])]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 1
