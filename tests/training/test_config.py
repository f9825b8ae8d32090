"""Recipes: typed, overridable, and clear about what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import DataError
from training.config import RECIPES, STRONG, load_recipe
from training.methods import METHODS, build_method
from training.networks import NETWORKS

MINIMAL = """
[[labeled]]
source = "folder:frames"
[[validation]]
source = "folder:frames"
"""


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text)
    return path


def test_a_recipe_is_named_after_its_file(tmp_path: Path) -> None:
    assert load_recipe(write_recipe(tmp_path, MINIMAL)).name == "small"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid_and_found_by_its_bare_name(path: Path) -> None:
    recipe = load_recipe(Path(path.stem))
    assert recipe.network.name in NETWORKS
    assert recipe.method_name in METHODS
    assert recipe.description


@pytest.mark.parametrize(
    ("line", "key", "nearest"),
    [
        ("stepz = 5", "stepz", "steps"),
        ("[optimizer]\nlearning_rte = 0.1", "optimizer.learning_rte", "learning_rate"),
        ("[augment]\nrotation = 10", "augment.rotation", "rotation_degrees"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(
    tmp_path: Path, line: str, key: str, nearest: str
) -> None:
    text = line + "\n" + MINIMAL
    with pytest.raises(DataError) as error:
        load_recipe(write_recipe(tmp_path, text))
    assert key in str(error.value)
    assert f"Did you mean {nearest!r}?" in str(error.value)


def test_an_unknown_option_of_the_method_names_the_nearest(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, MINIMAL + '[method]\nname = "supervised"\ndice_wait = 1.0\n'))
    with pytest.raises(DataError, match="dice_weight"):
        build_method(recipe.method_name, recipe.method_options, recipe.network, 2)


def test_overrides_replace_values_in_tables_and_lists(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["optimizer.learning_rate=1e-3", "labeled.0.source=folder:other", "steps=7"])
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.labeled[0].source == "folder:other"
    assert recipe.steps == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = [", "not valid TOML"),
        ("steps = 0" + MINIMAL, "steps is 0"),
        ("steps = 5", "labeled"),
        ('precision = "float8"' + MINIMAL, "precision"),
    ],
)
def test_a_wrong_recipe_is_refused_with_a_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        load_recipe(write_recipe(tmp_path, text))


def test_a_missing_recipe_lists_those_that_ship() -> None:
    with pytest.raises(DataError, match="edge_web_frames"):
        load_recipe(Path("no_such_recipe"))


@pytest.mark.parametrize("override", ["steps", "labeled.7.source=folder:x", "steps.deep=1"])
def test_a_wrong_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(DataError, match="--set"):
        load_recipe(write_recipe(tmp_path, "steps = 5" + MINIMAL), [override])


def test_a_key_of_the_strong_views_leaves_the_other_keys_strong() -> None:
    recipe = load_recipe(Path("min_max_similarity_endovis2015"), ["strong.paste=0.5"])
    assert recipe.strong == STRONG.model_copy(update={"paste": 0.5})
