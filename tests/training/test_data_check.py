"""`surgseg-train data check`: it counts what is there and names everything that is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from service.errors import DataError
from tests.training.replicas import (
    REPLICAS,
    left_half,
    picture,
    write_cholecseg8k,
    write_folder,
    write_kvasir_instrument,
    write_picture,
)
from tests.training.test_data import write_endovis2015_robotic, write_video
from training.__main__ import main
from training.data import open_data
from training.data.check import check_data


def found(spec: str, split: str = "") -> list[str]:
    return [problem.found for problem in check_data(spec, split).problems]


@pytest.mark.parametrize("reader", REPLICAS)
def test_whole_data_have_no_problems(reader: str, tmp_path: Path) -> None:
    REPLICAS[reader](tmp_path)
    report = check_data(f"{reader}:{tmp_path}")
    assert report.problems == []
    assert report.read == report.overall.frames == report.overall.labeled > 0
    assert report.sizes.total() == report.read
    assert 0 < report.overall.share(1) < 1
    assert report.overall.share(0) + report.overall.share(1) == pytest.approx(1)


def test_it_counts_frames_videos_sizes_and_shares_of_pixels(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_picture(tmp_path / "test" / "image" / "case2" / "a.jpg", picture(48, 64))
    write_picture(tmp_path / "test" / "mask" / "case2" / "a.png", left_half(0, 48, 64))
    report = check_data(f"folder:{tmp_path}").to_json()
    assert (report["frames"], report["labeled"], report["read"]) == (3, 3, 3)
    assert report["sizes"] == {"32x24": 2, "64x48": 1}
    assert report["videos"]["train/case1"] == {"frames": 2, "labeled": 2, "labels": {"0": 0.5, "1": 0.5}}
    assert report["labels"] == pytest.approx({"0": 5 / 6, "1": 1 / 6})


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    names = ["whole", "no_mask", "wrong_size", "unknown_value", "cut", "cut_mask", "twice"]
    images, masks = tmp_path / "train" / "image", tmp_path / "train" / "mask"
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    for name in names:
        write_picture(images / f"{name}.jpg", noise)
        write_picture(masks / f"{name}.png", left_half(1))
    (masks / "no_mask.png").unlink()
    write_picture(masks / "no_picture.png", left_half(1))
    write_picture(masks / "wrong_size.png", left_half(1, 12, 16))
    write_picture(masks / "unknown_value.png", left_half(77))
    for path in (images / "cut.jpg", masks / "cut_mask.png"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write_picture(images / "twice.png", noise)
    problems = found(f"folder:{tmp_path}")
    expected = [
        f"{images / 'no_mask.jpg'} has no mask",
        f"{masks / 'no_picture.png'} has no picture",
        f"{images / 'twice.jpg'} and {images / 'twice.png'} are both frame train/twice",
        f"{images / 'cut.jpg'} cannot be read as a picture",
        f"{masks / 'cut_mask.png'} cannot be read as a picture",
        "train/wrong_size: the mask is 16 x 12",
        f"{masks / 'unknown_value.png'} holds the unknown values [77]",
    ]
    assert len(problems) == len(expected)
    for start in expected:
        assert [problem for problem in problems if problem.startswith(start)], start


def test_opening_the_same_data_stops_at_the_first_problem_and_points_to_the_check(tmp_path: Path) -> None:
    write_kvasir_instrument(tmp_path)
    (tmp_path / "masks" / "ck02.png").unlink()
    with pytest.raises(DataError, match=f"`surgseg-train data check kvasir_instrument {tmp_path}`"):
        open_data(f"kvasir_instrument:{tmp_path}")


def test_a_picture_that_cannot_be_read_does_not_hide_its_mask(tmp_path: Path) -> None:
    write_kvasir_instrument(tmp_path)
    (tmp_path / "images" / "ck01.jpg").write_bytes(b"")
    (tmp_path / "masks" / "ck01.png").write_bytes(b"nothing")
    assert [Path(problem.split()[0]).name for problem in found(f"kvasir_instrument:{tmp_path}")] == [
        "ck01.jpg",
        "ck01.png",
    ]


def test_a_file_that_is_picture_and_mask_is_named_once(tmp_path: Path) -> None:
    REPLICAS["art_net"](tmp_path)
    negative = tmp_path / "Test" / "Test_Negative" / "Test_Neg_sample_0001.png"
    negative.write_bytes(negative.read_bytes()[:-20])
    assert len(found(f"art_net:{tmp_path}")) == 1


def test_a_video_that_ends_early_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    write_endovis2015_robotic(tmp_path)
    write_endovis2015_robotic(tmp_path / "more")
    (tmp_path / "more" / "Dataset1").rename(tmp_path / "Dataset2")
    write_video(tmp_path / "Dataset2" / "Segmentation.avi", [picture(48, 64)] * 3)
    report = check_data(f"endovis2015_robotic:{tmp_path}")
    assert list(report.videos) == ["Dataset1"] and report.read == 4
    (problem,) = report.problems
    assert problem.found == f"{tmp_path / 'Dataset2'}: frame counts differ: Video.avi 4, Segmentation.avi 3."


@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
def test_a_video_that_is_cut_is_named(share: float, tmp_path: Path) -> None:
    write_endovis2015_robotic(tmp_path)
    video = tmp_path / "Dataset1" / "Video.avi"
    write_video(video, list(np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), np.uint8)))
    assert found(f"endovis2015_robotic:{tmp_path}") == []
    cut = tmp_path / "cut" / "Dataset1"  # elsewhere: lengths are remembered by path
    cut.mkdir(parents=True)
    (cut / "Segmentation.avi").write_bytes((tmp_path / "Dataset1" / "Segmentation.avi").read_bytes())
    (cut / "Video.avi").write_bytes(video.read_bytes()[: int(share * video.stat().st_size)])
    (problem,) = found(f"endovis2015_robotic:{cut.parent}")
    # cut inside a packet it cannot be decoded, cut between two it is short
    assert problem.startswith(str(cut))
    assert re.search(r"Video\.avi cannot be decoded|frame counts differ: Video\.avi [0-3], Seg", problem)


def test_names_that_mean_nothing_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "00001-7-frame-20.jpg", picture())
    write_picture(tmp_path / "images" / "00001-7-frame-²0.jpg", picture())
    write_picture(tmp_path / "images" / "holiday.jpg", picture())
    assert [Path(problem.split()[0]).name for problem in found(f"intermountain:{tmp_path}")] == [
        "00001-7-frame-²0.jpg",
        "holiday.jpg",
    ]


def test_a_split_is_held_against_the_data(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train" / "mask").rename(tmp_path / "elsewhere")
    split = tmp_path / "split.json"
    parts = {"train": {"train/case1": ["a", "gone"]}, "test": {"test/case2": ["a"]}}
    split.write_text(json.dumps({"parts": parts}))
    report = check_data(f"folder:{tmp_path}", str(split))
    assert [problem.found for problem in report.problems] == [
        f"The part train of the split {split} names train/case1/gone.",
        f"The part train of the split {split} has no labeled frame.",
    ]
    assert report.to_json()["parts"] == {
        "train": {"frames": 1, "labeled": 0},
        "test": {"frames": 1, "labeled": 1},
    }


def test_an_unlabeled_pool_is_counted_as_such(tmp_path: Path) -> None:
    write_picture(tmp_path / "train" / "image" / "a.jpg", picture())
    report = check_data(f"folder:{tmp_path}")
    assert (report.overall.frames, report.overall.labeled, report.problems) == (1, 0, [])


def test_stride_reads_fewer_frames_and_says_so(tmp_path: Path) -> None:
    write_cholecseg8k(tmp_path)
    report = check_data(f"cholecseg8k:{tmp_path}", stride=3)
    assert (report.overall.frames, report.read) == (4, 2)
    assert "read 2 of 4 frames" in report.to_table()


def test_the_command_prints_a_table_writes_json_and_says_how_it_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kvasir_instrument(tmp_path / "data")
    command = [
        "data",
        "check",
        "kvasir_instrument",
        str(tmp_path / "data"),
        "--json",
        str(tmp_path / "out" / "c.json"),
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["video", "frames", "labeled", "class", "0", "class", "1"]
    assert "train         2        2    50.00%    50.00%" in printed and "problems: none" in printed
    assert json.loads((tmp_path / "out" / "c.json").read_text())["problems"] == []

    lost = tmp_path / "data" / "masks" / "ck02.png"
    lost.unlink()
    assert main(command) == 2
    printed, complaint = capsys.readouterr()
    assert f"{tmp_path / 'data' / 'images' / 'ck02.jpg'} has no mask." in printed
    assert f"Problems in {tmp_path / 'data'}: 1." in complaint
    (problem,) = json.loads((tmp_path / "out" / "c.json").read_text())["problems"]
    assert set(problem) == {"found", "expected", "remedy"}


@pytest.mark.parametrize("arguments", [["folder", "."], ["foldr", "."], ["folder", "nowhere"]])
def test_nothing_to_check_is_an_error(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *arguments]) == 2
    assert "Expected" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--stride", "0"], ["--split", "nothing"]])
def test_a_wrong_option_is_an_error(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path)
    assert main(["data", "check", "folder", str(tmp_path), *options]) == 2
    assert "Expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reader", "frames", "labeled", "videos"),
    [
        ("endovis2015_rigid_parts", 160, 160, 4),
        ("surgical_web_frames", 821, 821, 5),
        ("intermountain", 309, 0, 16),
    ],
)
def test_the_real_data_are_whole(
    reader: str, frames: int, labeled: int, videos: int, data_folder: Path
) -> None:
    report = check_data(f"{reader}:{data_folder / reader.removesuffix('_parts')}", stride=20)
    assert report.problems == []
    assert (report.overall.frames, report.overall.labeled, len(report.videos)) == (frames, labeled, videos)
