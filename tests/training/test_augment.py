"""Augmentation: picture and mask move together, and everything follows from the seed."""

from __future__ import annotations

import numpy as np
import pytest

from service.contract.geometry import fit_image, plan_fit
from service.contract.model_card import InputSize
from training.config import AugmentConfig
from training.data.augment import (
    change_appearance,
    draw_warp,
    find_origin,
    paste_instruments,
    warp,
    warp_to_canvas,
)

ALWAYS = AugmentConfig(
    colour=1, grayscale=1, blur=1, noise=1, jpeg=1, smoke=1, view_circle=1, shade=1, cutout=1, paste=1
)
NEVER = AugmentConfig(
    scale=(1, 1), rotation_degrees=0, aspect_jitter=0, flip=0, flip_vertical=0, colour=0, grayscale=0, blur=0,
    noise=0, jpeg=0, smoke=0, view_circle=0, shade=0, cutout=0, paste=0,
)  # fmt: skip


def blob_picture(height: int = 120, width: int = 160) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:height, :width]
    mask_hw = (((rows - 50) / 25) ** 2 + ((columns - 90) / 45) ** 2 < 1).astype(np.uint8)
    return np.repeat(mask_hw[:, :, None] * 200, 3, axis=2), mask_hw


@pytest.mark.parametrize("seed", range(8))
def test_picture_and_mask_get_the_same_warp(seed: int) -> None:
    image_hwc, mask_hw = blob_picture()
    warped, warped_mask = warp_to_canvas(
        image_hwc, mask_hw, (96, 160), (1.2, 1.8), AugmentConfig(), np.random.default_rng(seed)
    )
    assert warped.shape == (96, 160, 3)
    assert np.mean((warped[:, :, 0] > 100) != (warped_mask > 0)) < 0.02


@pytest.mark.parametrize("seed", range(4))
def test_the_origin_says_where_each_pixel_lay_in_its_picture(seed: int) -> None:
    rows, columns = np.mgrid[:120, :160]
    image_hwc = np.stack([columns, rows, np.full_like(rows, 255)], axis=2).astype(np.uint8)
    matrix = draw_warp(
        (120, 160), (96, 128), (), AugmentConfig(scale=(0.8, 1.3)), np.random.default_rng(seed)
    )
    warped, _ = warp(image_hwc, np.zeros((120, 160), np.uint8), (96, 128), matrix)
    origin = find_origin(matrix, (120, 160))
    y, x = np.nonzero(warped[:, :, 2] == 255)  # not mixed with what lies beyond the picture
    across, down = origin @ np.stack([x, y, np.ones_like(x)])
    assert len(x) > 1000
    assert np.abs(across * 160 - 0.5 - warped[y, x, 0]).max() < 1.5  # uint8, and a blur when it is shrunk
    assert np.abs(down * 120 - 0.5 - warped[y, x, 1]).max() < 1.5
    beyond = origin @ np.stack(
        [*np.nonzero((warped == 0).all(axis=2))[::-1], np.ones((warped == 0).all(axis=2).sum())]
    )
    assert ((np.abs(beyond - 0.5) > 0.5).any(axis=0) | (np.abs(beyond) < 0.02).any(axis=0)).all()


def test_without_randomness_the_warp_is_the_service_fit_up_to_half_a_pixel() -> None:
    image_hwc, mask_hw = blob_picture()
    config = NEVER
    differences = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        warped, _ = warp_to_canvas(image_hwc, mask_hw, (120, 160), (), config, rng)
        fitted = fit_image(image_hwc, plan_fit(120, 160, InputSize(height=120, width=160)))
        # the position alone stays random: compare what does not depend on it
        differences.append(abs(float(warped.mean()) - float(fitted.mean())))
    assert min(differences) < 0.5


def test_the_same_seed_gives_the_same_picture_and_another_gives_another() -> None:
    image_hwc, mask_hw = blob_picture()
    results = [
        change_appearance(image_hwc, mask_hw, ALWAYS, np.random.default_rng(seed)) for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert np.any(results[0][0] != results[2][0])


def test_what_a_round_view_or_a_box_hides_is_not_in_the_mask() -> None:
    image_hwc, mask_hw = np.full((96, 160, 3), 200, np.uint8), np.ones((96, 160), np.uint8)
    config = NEVER.model_copy(update={"view_circle": 1.0, "cutout": 1.0})
    for seed in range(10):
        shown, shown_mask = change_appearance(image_hwc, mask_hw, config, np.random.default_rng(seed))
        assert 0 < shown_mask.mean() < 1
        assert np.all(shown[shown_mask == 0].max(axis=-1) <= 200)
        assert np.mean(shown[shown_mask == 1] < 40) < 0.05  # a soft rim may dim a little that is still shown


def test_with_all_probabilities_zero_nothing_changes() -> None:
    image_hwc, mask_hw = blob_picture()
    shown, shown_mask = change_appearance(image_hwc, mask_hw, NEVER, np.random.default_rng(0))
    np.testing.assert_array_equal(shown, image_hwc)
    np.testing.assert_array_equal(shown_mask, mask_hw)


def test_pasting_unites_masks_and_shows_the_pasted_instrument() -> None:
    image_hwc, mask_hw = blob_picture()
    other_hwc, other_mask_hw = np.full_like(image_hwc, 50), np.zeros_like(mask_hw)
    other_mask_hw[100:118, 10:60] = 1
    rng = np.random.default_rng(0)
    mixed, united = paste_instruments(image_hwc, mask_hw, other_hwc, other_mask_hw, NEVER, rng)
    np.testing.assert_array_equal(united, mask_hw | other_mask_hw)
    assert mixed[108, 30, 0] == 50
    assert mixed[50, 90, 0] == 200
    coloured, _ = paste_instruments(
        image_hwc, mask_hw, other_hwc, other_mask_hw, NEVER.model_copy(update={"paste_colour": 1.0}), rng
    )
    assert (coloured[108, 30] != 50).any()
    np.testing.assert_array_equal(coloured[:90], mixed[:90])
