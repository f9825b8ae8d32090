"""The synthetic scene: exact masks, determinism, motion, sizes, and the pictures it writes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from service.contract.geometry import Mask
from service.errors import InvalidRequestError
from service.streams.synthetic import SyntheticScene, SyntheticSource, main
from service.streams.synthetic_instruments import Instrument, Points, Pose

BACKGROUND = (255, 0, 255)
CENTRE, EXTENT = (160.0, 120.0), (160.0, 120.0)


def inside(outline: Points, height: int, width: int) -> np.ndarray:
    """Even-odd rule at every pixel's centre, straight from the definition."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    odd = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in itertools.pairwise([*outline, outline[0]]):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        odd ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def rasterise(instrument: Instrument, pose: Pose, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    for outline, holes in instrument.outlines(pose):
        part = inside(outline, height, width)
        for hole in holes:
            part &= ~inside(hole, height, width)
        mask |= part
    return mask


def edges(mask: np.ndarray) -> np.ndarray:
    """Pixels within a pixel and a half of a change."""
    kernel = np.ones((3, 3), np.uint8)
    grown, shrunk = cv2.dilate(mask.astype(np.uint8), kernel), cv2.erode(mask.astype(np.uint8), kernel)
    return cv2.dilate(grown - shrunk, kernel).astype(bool)


def draw(instrument: Instrument, pose: Pose) -> tuple[np.ndarray, Mask]:
    image_hwc = np.full((240, 320, 3), BACKGROUND, np.uint8)
    mask_hw = np.zeros((240, 320), np.uint8)
    instrument.draw(pose, image_hwc, mask_hw)
    return image_hwc, mask_hw


@pytest.mark.parametrize("seed", range(12))
def test_mask_is_exactly_what_was_drawn(seed: int) -> None:
    instrument = Instrument(np.random.default_rng(seed), CENTRE, EXTENT)
    for time_s in (0.0, 3.3, 11.0):
        image_hwc, mask_hw = draw(instrument, instrument.pose(time_s))
        drawn = (image_hwc != BACKGROUND).any(axis=2)
        assert np.array_equal(drawn, mask_hw.astype(bool))


@pytest.mark.parametrize("seed", range(12))
def test_mask_agrees_with_an_independent_rasterisation(seed: int) -> None:
    instrument = Instrument(np.random.default_rng(seed), CENTRE, EXTENT)
    pixels = 0
    for time_s in (0.0, 3.3, 11.0):
        pose = instrument.pose(time_s)
        mask_hw = draw(instrument, pose)[1].astype(bool)
        expected = rasterise(instrument, pose, *mask_hw.shape)
        assert not ((mask_hw != expected) & ~edges(expected) & ~edges(mask_hw)).any()
        pixels += int(expected.sum())
    assert pixels > 100


def test_holes_of_a_jaw_are_background() -> None:
    fenestrated = 0
    for seed in range(60):
        instrument = Instrument(np.random.default_rng(seed), (320, 240), (320, 240))
        pose = Pose((300.0, 240.0), (900.0, 240.0), 40.0, 0.5, 0.0)
        outlines = instrument.outlines(pose)
        mask_hw = np.zeros((480, 640), np.uint8)
        instrument.draw(pose, np.zeros((480, 640, 3), np.uint8), mask_hw)
        for hole in (hole for _, holes in outlines for hole in holes):
            middle = cv2.erode(inside(hole, 480, 640).astype(np.uint8), np.ones((3, 3))).astype(bool)
            for outline, holes in outlines:
                if not any(np.array_equal(hole, other) for other in holes):
                    middle &= ~inside(outline, 480, 640)
            assert not mask_hw[middle].any()
            fenestrated += bool(middle.any())
    assert fenestrated >= 5


def test_instruments_change_the_picture_only_at_and_near_the_mask() -> None:
    scene = SyntheticScene(320, 240, seed=3, view="full", instruments=2)
    empty = SyntheticScene(320, 240, seed=3, view="full", instruments=0)
    image_hwc, mask_hw = scene.render(2.0)
    clean_hwc, clean_mask_hw = empty.render(2.0)
    assert mask_hw.any() and not clean_mask_hw.any()
    difference = np.abs(image_hwc.astype(int) - clean_hwc).max(axis=2)
    # Beyond the lens's blur and the shadow, which falls a few per cent of the picture away, nothing changes.
    near = cv2.dilate(mask_hw, np.ones((81, 81), np.uint8)).astype(bool)
    assert difference[~near].max() == 0
    assert (difference[mask_hw.astype(bool)] > 8).mean() > 0.7


def test_same_seed_and_time_give_the_same_bytes_and_other_ones_do_not() -> None:
    first, again, other = (SyntheticScene(320, 180, seed=seed) for seed in (5, 5, 6))
    first.render(9.0)
    for left, right in zip(first.render(1.5), again.render(1.5), strict=True):
        assert np.array_equal(left, right)
    assert not np.array_equal(first.render(1.5)[0], other.render(1.5)[0])


def test_scene_moves_smoothly() -> None:
    scene = SyntheticScene(320, 180, seed=8, view="full", instruments=2)
    times = np.arange(0, 8, 0.04)
    masks = [scene.render(float(time_s))[1] for time_s in times]
    changes = [float((before != after).mean()) for before, after in itertools.pairwise(masks)]
    assert np.median(changes) > 0
    assert max(changes) < 0.06
    assert (masks[0] != masks[100]).mean() > 0.005


@pytest.mark.parametrize(("width", "height"), [(64, 64), (65, 67), (640, 480), (1280, 720), (360, 640)])
def test_every_size_gives_a_picture_and_a_mask_of_that_size(width: int, height: int) -> None:
    for seed in range(3):
        image_hwc, mask_hw = SyntheticScene(width, height, seed).render(1.0)
        assert image_hwc.shape == (height, width, 3) and image_hwc.dtype == np.uint8
        assert mask_hw.shape == (height, width) and mask_hw.dtype == np.uint8
        assert set(np.unique(mask_hw)) <= {0, 1}


def test_nothing_is_labeled_outside_the_round_view() -> None:
    labeled = 0
    for seed in range(8):
        image_hwc, mask_hw = SyntheticScene(320, 240, seed, view="circle", instruments=4).render(4.0)
        y, x = np.mgrid[0:240, 0:320]
        corner = ((x - 160) / 160) ** 2 + ((y - 120) / 120) ** 2 > 1.3
        assert not mask_hw[corner].any()
        black = cv2.erode((image_hwc.max(axis=2) == 0).astype(np.uint8), np.ones((3, 3))).astype(bool)
        surround = black & corner
        assert surround.sum() > 0.8 * corner.sum()
        labeled += int(mask_hw.sum())
    assert labeled > 1000


def test_instruments_come_in_all_numbers() -> None:
    counts = {len(SyntheticScene(64, 64, seed).instruments) for seed in range(60)}
    assert counts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "wrong",
    [{"width": 8}, {"height": 99_999}, {"seed": -1}, {"view": "square"}, {"instruments": 9}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_parameter_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=str(next(iter(wrong.values())))):
        SyntheticScene(**{"width": 320, "height": 240, **wrong})  # type: ignore[arg-type]


def test_source_gives_frames_in_scene_time_and_ends() -> None:
    scene = SyntheticScene(64, 64, seed=1)
    frames = list(SyntheticSource(scene, fps=10, duration_s=0.5).frames())
    assert [frame.pts_s for frame in frames] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert np.array_equal(frames[2].image_hwc, scene.render(0.2)[0])


def test_source_that_is_closed_gives_no_more_frames() -> None:
    source = SyntheticSource(SyntheticScene(64, 64), fps=25)
    frames = source.frames()
    next(frames)
    source.close()
    assert next(frames, None) is None


def test_source_refuses_a_rate_of_zero() -> None:
    with pytest.raises(InvalidRequestError, match="0 fps"):
        SyntheticSource(SyntheticScene(64, 64), fps=0)


def test_command_writes_pictures_and_masks_in_the_generic_layout(tmp_path: Path) -> None:
    size = ["--count", "4", "--width", "128", "--height", "96"]
    assert main(["--out", str(tmp_path), "--seed", "7", *size]) == 0
    images = sorted((tmp_path / "train" / "image").glob("*.jpg"))
    masks = sorted((tmp_path / "train" / "mask").glob("*.png"))
    assert [path.stem for path in images] == [path.stem for path in masks] and len(images) == 4
    values = set()
    for image_path, mask_path in zip(images, masks, strict=True):
        mask_hw = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
        assert cv2.imread(str(image_path)).shape == (96, 128, 3) and mask_hw.shape == (96, 128)
        values |= set(np.unique(mask_hw).tolist())
    assert values == {0, 255}


def test_command_with_a_wrong_size_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.streams.synthetic", "--out", str(tmp_path), "--width", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "width is 3 pixels" in done.stderr and "Traceback" not in done.stderr
