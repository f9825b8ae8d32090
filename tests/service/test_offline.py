"""`surgseg segment`: masks and overlays of pictures, folders and videos, and everything that can be wrong with them."""

from __future__ import annotations

import argparse
import csv
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from service import offline
from service.contract.geometry import Fit, Image
from service.contract.masks import decode_mask, from_png
from service.contract.model_card import ClassInfo
from service.errors import BundleError, DataError, StreamError
from service.output_files import write_whole
from service.overlay import draw_overlay
from service.recording import VideoWriter
from service.streams.video import read_video
from tests.conftest import expected_confidence

CLASSES = (
    ClassInfo(id=0, name="background", colour=(0, 0, 0)),
    ClassInfo(id=1, name="instrument", colour=(0, 200, 255)),
)


def make_picture(split: int, height: int = 288, width: int = 512) -> Image:
    """Dark left of column `split`, bright from there on: the small bundle labels exactly the bright part."""
    image_hwc = np.full((height, width, 3), 20, np.uint8)
    image_hwc[:, split:] = 230
    return image_hwc


def save_picture(path: Path, image_hwc: Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.ascontiguousarray(image_hwc[:, :, ::-1]))
    return path


def save_video(path: Path, count: int, height: int = 288, width: int = 512) -> Path:
    with VideoWriter(path, Fraction(10)) as writer:
        for number in range(count):
            writer.write(make_picture(32 + 16 * number, height, width), 0.2 + number / 10)
    return path


def segment(small_bundle: Path, source: Path, out: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    offline.add_arguments(parser)
    return offline.run(
        parser.parse_args([str(source), "--out", str(out), "--bundle", str(small_bundle), *options])
    )


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_picture_gives_its_exact_mask_and_an_overlay(
    small_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    source = save_picture(tmp_path / "frame.png", make_picture(200))
    assert segment(small_bundle, source, tmp_path / "out") == 0
    assert list_files(tmp_path / "out") == ["masks/frame.png", "overlays/frame.jpg"]
    mask_hw = from_png((tmp_path / "out" / "masks" / "frame.png").read_bytes())
    assert np.array_equal(mask_hw, make_picture(200)[:, :, 0] > 127)
    overlay_bgr = cv2.imread(str(tmp_path / "out" / "overlays" / "frame.jpg"))
    assert overlay_bgr is not None
    assert np.abs(overlay_bgr[100, 50].astype(int) - 20).max() < 10, "the background is left as it is"
    assert overlay_bgr[100, 400, 2] < overlay_bgr[100, 400, 1], (
        "the instrument is tinted with the card's colour"
    )
    assert "1 segmented" in capsys.readouterr().out


def test_masks_have_the_source_s_size(small_bundle: Path, tmp_path: Path) -> None:
    source = save_picture(tmp_path / "frame.jpg", make_picture(300, 601, 803))
    segment(small_bundle, source, tmp_path / "out", "--no-overlay")
    assert list_files(tmp_path / "out") == ["masks/frame.png"]
    assert from_png((tmp_path / "out" / "masks" / "frame.png").read_bytes()).shape == (601, 803)


@pytest.mark.parametrize("mask_format", ["png", "rle"])
def test_confidence_is_written_at_the_source_s_size_in_a_folder_of_its_own(
    confident_bundle: Path, tmp_path: Path, mask_format: str
) -> None:
    source = save_picture(tmp_path / "in" / "a" / "frame.png", make_picture(300, 576, 1024))
    options = ("--confidence", "--no-overlay", "--mask", mask_format)
    assert segment(confident_bundle, source.parents[1], tmp_path / "out", *options) == 0
    suffix = ".png" if mask_format == "png" else ".json"
    assert list_files(tmp_path / "out") == ["confidence/a/frame.png", f"masks/a/frame{suffix}"]
    confidence_hw = from_png((tmp_path / "out" / "confidence" / "a" / "frame.png").read_bytes())
    assert np.array_equal(confidence_hw, expected_confidence(make_picture(300, 576, 1024)))


def test_every_frame_of_a_video_has_its_confidence(confident_bundle: Path, tmp_path: Path) -> None:
    source = save_video(tmp_path / "clip.mp4", 3)
    assert segment(confident_bundle, source, tmp_path / "out", "--confidence", "--no-overlay") == 0
    names = [f"{number:06d}.png" for number in range(3)]
    assert list_files(tmp_path / "out" / "confidence" / "clip") == names
    for number, name in enumerate(names):
        confidence_hw = from_png((tmp_path / "out" / "confidence" / "clip" / name).read_bytes())
        expected_hw = expected_confidence(make_picture(32 + 16 * number))
        assert np.median(np.abs(confidence_hw.astype(int) - expected_hw)) <= 3


def test_confidence_that_the_bundle_has_not_is_refused_before_anything_is_written(
    small_bundle: Path, tmp_path: Path
) -> None:
    source = save_picture(tmp_path / "frame.png", make_picture(200))
    with pytest.raises(BundleError, match="no confidence"):
        segment(small_bundle, source, tmp_path / "out", "--confidence")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["rle", "polygons"])
def test_masks_come_in_other_forms(small_bundle: Path, tmp_path: Path, form: Any) -> None:
    source = save_picture(tmp_path / "frame.png", make_picture(200))
    segment(small_bundle, source, tmp_path / "out", "--mask", form)
    mask_hw = decode_mask((tmp_path / "out" / "masks" / "frame.json").read_bytes(), form)
    assert np.array_equal(mask_hw, make_picture(200)[:, :, 0] > 127)


def test_a_folder_keeps_its_folders_and_does_all_that_can_be_done(
    small_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "in"
    save_picture(folder / "a.png", make_picture(100))
    save_picture(folder / "one" / "two" / "b.JPG", make_picture(200))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (folder / "one" / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("words")
    (folder / ".hidden.png").write_bytes(b"")
    assert segment(small_bundle, folder, tmp_path / "out") == 1
    assert list_files(tmp_path / "out") == [
        "masks/a.png",
        "masks/one/two/b.png",
        "overlays/a.jpg",
        "overlays/one/two/b.jpg",
    ]
    printed = capsys.readouterr()
    assert "2 segmented" in printed.out
    assert "1 files that are not pictures" in printed.out
    assert [line.split(":")[1].strip() for line in printed.err.splitlines() if line.startswith("failed")] == [
        str(folder / "broken.jpg"),
        str(folder / "one" / "empty.png"),
    ]


def test_pictures_that_differ_only_in_their_suffix_keep_apart(small_bundle: Path, tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "a.png", make_picture(100))
    save_picture(tmp_path / "in" / "a.jpg", make_picture(200))
    assert segment(small_bundle, tmp_path / "in", tmp_path / "out", "--no-overlay") == 0
    assert list_files(tmp_path / "out") == ["masks/a.jpg.png", "masks/a.png.png"]


def test_a_second_run_into_the_same_folder_does_not_take_masks_for_pictures(
    small_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    save_picture(tmp_path / "a.png", make_picture(100))
    for _ in range(2):
        assert segment(small_bundle, tmp_path, tmp_path / "out") == 0
        assert "1 segmented" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["frame.png", "masks"])
def test_the_input_is_never_overwritten(small_bundle: Path, tmp_path: Path, name: str) -> None:
    source = save_picture(tmp_path / "masks" / "frame.png", make_picture(100))
    before = source.read_bytes()
    with pytest.raises(DataError, match="would be overwritten"):
        segment(small_bundle, source if name == "frame.png" else source.parent, tmp_path)
    assert source.read_bytes() == before
    assert list_files(tmp_path) == ["masks/frame.png"]


def test_the_input_is_recognised_through_a_link(small_bundle: Path, tmp_path: Path) -> None:
    source = save_picture(tmp_path / "real" / "frame.png", make_picture(100))
    (tmp_path / "masks").symlink_to(source.parent)
    with pytest.raises(DataError, match="would be overwritten"):
        segment(small_bundle, source, tmp_path)


def test_a_video_gives_a_mask_a_frame_their_times_and_an_overlay_video(
    small_bundle: Path, tmp_path: Path
) -> None:
    source = save_video(tmp_path / "clip.mp4", 12)
    assert segment(small_bundle, source, tmp_path / "out") == 0
    with (tmp_path / "out" / "masks" / "clip" / "frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{number:06d}.png" for number in range(12)]
    assert [float(row["pts_s"]) for row in rows] == pytest.approx(
        [0.2 + number / 10 for number in range(12)], abs=1e-4
    )
    for number, row in enumerate(rows):
        mask_hw = from_png((tmp_path / "out" / "masks" / "clip" / row["file"]).read_bytes())
        assert abs(int(mask_hw.sum(axis=1).mean()) - (512 - 32 - 16 * number)) <= 2, (
            f"mask {number} is another frame's"
        )
    overlay = list(read_video(tmp_path / "out" / "overlays" / "clip.mp4"))
    assert [frame.pts_s for frame in overlay] == pytest.approx([frame.pts_s for frame in read_video(source)])
    assert overlay[0].image_hwc.shape == (288, 512, 3)
    assert overlay[0].image_hwc[100, 500, 0] < overlay[0].image_hwc[100, 500, 1]


def test_a_damaged_video_is_done_as_far_as_it_goes(small_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    whole = save_video(tmp_path / "whole.mp4", 20, 720, 1280)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
    assert segment(small_bundle, cut, tmp_path / "out") == 1
    masks = [name for name in list_files(tmp_path / "out") if name.endswith(".png")]
    assert 1 <= len(masks) < 20
    assert len(list(read_video(tmp_path / "out" / "overlays" / "cut.mp4"))) == len(masks)
    assert "damaged or truncated" in capsys.readouterr().err


def test_ctrl_c_leaves_what_was_finished_and_nothing_half_done(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_video(tmp_path / "clip.mp4", 12)
    segmented = offline.Segmenter.segment
    calls = []

    def interrupt(self: offline.Segmenter, canvas_hwc: Image, fit: Fit) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return segmented(self, canvas_hwc, fit)

    monkeypatch.setattr(offline.Segmenter, "segment", interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(small_bundle, source, tmp_path / "out")
    assert list_files(tmp_path / "out") == [f"masks/clip/{number:06d}.png" for number in range(4)]
    assert all(from_png(path.read_bytes()).shape == (288, 512) for path in (tmp_path / "out").rglob("*.png"))


def test_what_cannot_be_segmented_is_one_clear_error(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="There is no"):
        segment(small_bundle, tmp_path / "absent.png", tmp_path / "out")
    with pytest.raises(StreamError, match=r"words\.txt"):
        segment(small_bundle, tmp_path / "words.txt", tmp_path / "out")
    with pytest.raises(DataError, match="holds no pictures"):
        segment(small_bundle, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(BundleError):
        segment(tmp_path / "no-bundle", tmp_path / "words.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made_is_one_clear_error(small_bundle: Path, tmp_path: Path) -> None:
    source = save_picture(tmp_path / "frame.png", make_picture(100))
    (tmp_path / "out").write_text("a file is in the way")
    with pytest.raises(DataError, match="cannot be made"):
        segment(small_bundle, source, tmp_path / "out")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.png"
    write_whole(path, b"first")

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match="cannot be written"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_overlay_changes_the_labeled_pixels_and_their_outline_only() -> None:
    image_hwc = np.full((720, 400, 3), 100, np.uint8)
    mask_hw = np.zeros((720, 400), np.uint8)
    mask_hw[200:400, 100:300] = 1
    overlay_hwc = draw_overlay(image_hwc, mask_hw, CLASSES)
    assert overlay_hwc[300, 200].tolist() == [60, 140, 162]
    assert overlay_hwc[200, 200].tolist() == [0, 200, 255]
    outside = cv2.dilate(mask_hw, np.ones((5, 5), np.uint8)) == 0
    assert (overlay_hwc[outside] == 100).all()
    assert (image_hwc == 100).all(), "the picture itself is left alone"


def test_an_overlay_of_another_picture_s_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="the picture is"):
        draw_overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), CLASSES)
    with pytest.raises(ValueError, match="class 2"):
        draw_overlay(np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 2, np.uint8), CLASSES)
