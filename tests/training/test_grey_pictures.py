"""Augmentation for scanners: grey pictures stay grey, and their recipes change nothing that only a camera does."""

from __future__ import annotations

import numpy as np
import pytest

from training.config import RECIPES, AugmentConfig, load_recipe
from training.data.augment import change_appearance

COLOURFUL = AugmentConfig(colour=1, grayscale=0, blur=1, noise=1, jpeg=1, smoke=1, shade=1, cutout=1)


@pytest.mark.parametrize("grey", [True, False])
def test_a_grey_picture_stays_grey_and_a_camera_s_does_not(grey: bool) -> None:
    picture_hwc = np.repeat(np.random.default_rng(0).integers(0, 255, (64, 64, 1), np.uint8), 3, axis=2)
    mask_hw = np.zeros((64, 64), np.uint8)
    config = COLOURFUL.model_copy(update={"grey": grey})
    changed = [
        change_appearance(picture_hwc, mask_hw, config, np.random.default_rng(seed))[0] for seed in range(8)
    ]
    assert all((image == image[:, :, :1]).all() for image in changed) is grey
    assert all((image != picture_hwc).any() for image in changed)


@pytest.mark.parametrize("name", ["acdc", "ct"])
def test_the_recipes_of_scanners_neither_mirror_nor_colour(name: str) -> None:
    recipes = [load_recipe(path) for path in sorted(RECIPES.glob(f"*_{name}.toml"))]
    assert recipes
    for recipe in recipes:
        assert recipe.augment.grey and (recipe.augment.flip, recipe.augment.flip_vertical) == (0, 0)
        assert recipe.augment.paste == 0 and (recipe.strong.grey or not recipe.unlabeled)
