from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.geometry import FitRule, crop_mask, fit_image, fit_mask, plan_fit, restore_mask
from service.contract.model_card import InputSize

SIZE = InputSize(height=96, width=160)
sides = st.integers(1, 400)
rules = st.sampled_from(["letterbox", "stretch"])


@given(height=sides, width=sides, rule=rules)
def test_a_fit_lies_inside_the_canvas_and_touches_two_edges(height: int, width: int, rule: FitRule) -> None:
    fit = plan_fit(height, width, SIZE, rule)
    assert 0 <= fit.top <= fit.canvas_height - fit.height
    assert 0 <= fit.left <= fit.canvas_width - fit.width
    assert fit.height == SIZE.height or fit.width == SIZE.width
    if rule == "stretch":
        assert (fit.height, fit.width) == (SIZE.height, SIZE.width)
    elif min(height, width) >= 20:
        assert fit.height / fit.width == pytest.approx(height / width, rel=0.15, abs=0.05)


@given(height=sides, width=sides, rule=rules)
def test_a_mask_on_the_canvas_comes_back_at_the_pictures_own_size(
    height: int, width: int, rule: FitRule
) -> None:
    fit = plan_fit(height, width, SIZE, rule)
    canvas_hw = fit_mask(np.full((height, width), 3, np.uint8), fit)
    assert canvas_hw.shape == (SIZE.height, SIZE.width)
    assert (crop_mask(canvas_hw, fit) == 3).all()
    assert canvas_hw.sum(dtype=np.int64) == 3 * fit.height * fit.width, "outside the picture is background"
    restored_hw = restore_mask(canvas_hw, fit)
    assert restored_hw.shape == (height, width)
    assert (restored_hw == 3).all()


@given(scale=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_mask_enlarged_by_whole_steps_comes_back_unchanged(scale: int, seed: int) -> None:
    small_hw = np.random.default_rng(seed).integers(0, 3, (96 // 4, 160 // 4), dtype=np.uint8)
    source_hw = np.repeat(np.repeat(small_hw, scale, axis=0), scale, axis=1)
    fit = plan_fit(*source_hw.shape, SIZE)
    np.testing.assert_array_equal(restore_mask(fit_mask(source_hw, fit), fit), source_hw)


@given(height=sides, width=sides, rule=rules)
def test_a_picture_of_one_colour_keeps_it_and_the_border_is_black(
    height: int, width: int, rule: FitRule
) -> None:
    fit = plan_fit(height, width, SIZE, rule)
    dirty_hwc = np.full((SIZE.height, SIZE.width, 3), 99, np.uint8)
    canvas_hwc = fit_image(np.full((height, width, 3), (10, 150, 250), np.uint8), fit, out=dirty_hwc)
    assert canvas_hwc is dirty_hwc
    inside = np.zeros((SIZE.height, SIZE.width), bool)
    inside[fit.top : fit.top + fit.height, fit.left : fit.left + fit.width] = True
    assert (canvas_hwc[inside] == (10, 150, 250)).all()
    assert not canvas_hwc[~inside].any()


def test_a_picture_of_the_models_size_is_copied_byte_for_byte() -> None:
    image_hwc = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_image(image_hwc, plan_fit(96, 160, SIZE)), image_hwc)


def test_a_fit_is_only_for_the_picture_it_was_planned_for() -> None:
    fit = plan_fit(100, 200, SIZE)
    with pytest.raises(ValueError, match=r"200 x 101.*200 x 100"):
        fit_image(np.zeros((101, 200, 3), np.uint8), fit)
    with pytest.raises(ValueError, match="planned"):
        restore_mask(np.zeros((100, 200), np.uint8), fit)
    with pytest.raises(ValueError, match="at least one pixel"):
        plan_fit(0, 5, SIZE)
