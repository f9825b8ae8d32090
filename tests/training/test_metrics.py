"""Dice, IoU, surface distance and the confidence interval, against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.metrics import confidence_interval, dice_and_iou, normalised_surface_distance


def box(left: int, width: int, value: int = 1) -> np.ndarray:
    mask_hw = np.zeros((40, 60), np.uint8)
    mask_hw[10:30, left : left + width] = value
    return mask_hw


def test_half_overlap() -> None:
    dice, iou = dice_and_iou(box(10, 20), box(20, 20), 2)
    assert dice == pytest.approx(0.5)
    assert iou == pytest.approx(1 / 3)


def test_empty_masks() -> None:
    empty = np.zeros((40, 60), np.uint8)
    assert dice_and_iou(empty, empty, 2) == (1.0, 1.0)
    assert dice_and_iou(box(0, 5), empty, 2) == (0.0, 0.0)
    assert normalised_surface_distance(empty, empty, 2, 3) == 1.0
    assert normalised_surface_distance(box(0, 5), empty, 2, 3) == 0.0


def test_classes_are_averaged_where_present() -> None:
    predicted, true = box(10, 10, 1) + box(40, 10, 2), box(10, 10, 1)
    assert dice_and_iou(predicted, true, 3)[0] == pytest.approx(0.5)


def test_a_shift_within_the_tolerance_is_no_error_and_beyond_it_is() -> None:
    assert normalised_surface_distance(box(12, 20), box(10, 20), 2, 2.0) == pytest.approx(1.0)
    assert normalised_surface_distance(box(20, 20), box(10, 20), 2, 2.0) < 0.6


def test_the_interval_holds_the_mean_and_narrows_with_agreement() -> None:
    rng = np.random.default_rng(0)
    groups = ["a"] * 30 + ["b"] * 30
    spread = np.clip(rng.normal(0.8, 0.1, 60), 0, 1)
    low, high = confidence_interval(spread.tolist(), groups)
    assert low < spread.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(60), rel=0.3)
    assert confidence_interval([0.7] * 60, groups) == pytest.approx((0.7, 0.7))


def test_frames_are_drawn_within_their_video() -> None:
    # two videos without spread of their own: drawing across them would give an interval
    assert confidence_interval([0.9] * 10 + [0.3] * 10, ["a"] * 10 + ["b"] * 10) == pytest.approx((0.6, 0.6))
