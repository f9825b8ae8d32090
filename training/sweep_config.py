"""Sweep files: which runs a comparison consists of, and the check that they differ in nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.errors import DataError
from training.config import RECIPES, DataConfig, Recipe, load_recipe, parse_table, read_table
from training.data.splits import load_split
from training.methods import find_method

SWEEPS = RECIPES / "sweeps"
TEST_PART = "test"
# What a run may have of its own; everything else has to be equal in all runs of a comparison.
_OWN_KEYS = ("name", "description", "method", "seed")
_OWN_DATA_KEYS = ("split", "share", "share_seed")
LabelShare = Annotated[float, Field(gt=0, le=1)]


class MethodEntry(BaseModel):
    """One method of a sweep. `label` is its name in the report, `shares` replaces the sweep's own list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    label: str = ""
    options: dict[str, Any] = {}
    shares: tuple[LabelShare, ...] = ()


class SweepConfig(BaseModel):
    """Methods x shares of the labels x folds x seeds over one recipe.

    `recipe` is the name or path of a recipe, or a recipe's keys; `folds` are splits with the parts that the recipe
    names and a part `test`. `keep_checkpoints` false deletes the weights of a run once it is measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    recipe: str | dict[str, Any]
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    shares: tuple[LabelShare, ...] = Field(min_length=1)
    folds: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    keep_checkpoints: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep; `slug` names its folder and its line of results."""

    slug: str
    method: str
    share: float
    fold: str
    seed: int
    recipe: Recipe

    @property
    def test_data(self) -> tuple[DataConfig, ...]:
        """The test part of the fold, in the data that the run validates on."""
        tables = (table for table in self.recipe.validation if table.split)
        return tuple(table.model_copy(update={"part": TEST_PART}) for table in tables)

    @property
    def recipe_hash(self) -> str:
        """SHA-256 over everything that decides the run."""
        values = self.recipe.model_dump(mode="json", exclude={"name", "description"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_sweep(path: Path) -> tuple[SweepConfig, list[PlannedRun]]:
    """Read a sweep file (a bare name is one that ships) and plan its runs. Raises DataError."""
    path, table = read_table(path, SWEEPS, "sweep")
    sweep = parse_table(SweepConfig, table, str(path))
    if isinstance(sweep.recipe, str):
        base = load_recipe(Path(sweep.recipe))
    else:
        base = parse_table(Recipe, {"name": path.stem, **sweep.recipe}, f"{path}: [recipe]")
    return sweep, plan_runs(sweep, base)


def plan_runs(sweep: SweepConfig, base: Recipe) -> list[PlannedRun]:
    """Every run in the order it is made. Raises DataError where the comparison would not be fair or not possible.

    Methods come innermost and seeds outermost, so that a sweep stopped early holds complete sets to compare.
    """
    for entry in sweep.methods:
        method = find_method(entry.name)
        method.parse_options(entry.options)
        if method.strong_views and not base.unlabeled:
            raise DataError(
                f"{entry.name} learns from unlabeled pictures, and the sweep's recipe has none.",
                "[[unlabeled]] tables",
                "Add one; it may name the labeled frames again.",
            )
    for fold in sweep.folds:
        _check_fold(fold, base)
    shares = sorted({*sweep.shares, *(share for entry in sweep.methods for share in entry.shares)})
    runs = [
        _plan_run(base, entry, share, fold, seed)
        for seed in sweep.seeds
        for share in shares
        for fold in sweep.folds
        for entry in sweep.methods
        if share in (entry.shares or sweep.shares)
    ]
    slugs = [run.slug for run in runs]
    repeated = next((slug for slug in slugs if slugs.count(slug) > 1), None)
    if repeated:
        raise DataError(
            f"The sweep plans {repeated} twice.",
            "each run once",
            "Give methods of one name different labels, and name folds and seeds once.",
        )
    check_comparable([run.recipe for run in runs])
    return runs


def _plan_run(base: Recipe, entry: MethodEntry, share: float, fold: str, seed: int) -> PlannedRun:
    label = entry.label or entry.name
    slug = re.sub(r"[^\w.-]+", "_", f"{label}_share{share:g}_{Path(fold).stem}_seed{seed}")

    def on_fold(tables: Sequence[DataConfig], **changes: Any) -> tuple[DataConfig, ...]:
        return tuple(t.model_copy(update={**changes, **({"split": fold} if t.split else {})}) for t in tables)

    recipe = base.model_copy(
        update={
            "name": slug,
            "seed": seed,
            "method": {"name": entry.name, **entry.options},
            "labeled": on_fold(base.labeled, share=share, share_seed=seed),
            "unlabeled": on_fold(base.unlabeled),
            "validation": on_fold(base.validation),
        }
    )
    return PlannedRun(slug, label, share, fold, seed, recipe)


def _check_fold(fold: str, base: Recipe) -> None:
    """The fold has a test part, and nothing that is learned from or chosen on can be in it."""
    parts = load_split(fold)
    if TEST_PART not in parts:
        raise DataError(
            f"The fold {fold} has no part {TEST_PART!r}.",
            f"{TEST_PART!r} beside {', '.join(parts)}",
            "Add it.",
        )
    sources = {table.source for table in base.validation if table.split}
    if not sources:
        raise DataError(
            "No [[validation]] of the sweep's recipe names a split.",
            "one with a split, whose test part is what the runs are measured on",
            "Add split and part.",
        )
    for kind in ("labeled", "unlabeled", "validation"):
        for table in getattr(base, kind):
            if table.part == TEST_PART or (table.source in sources and not table.split):
                raise DataError(
                    f"[[{kind}]] {table.source} holds the frames that the runs are tested on.",
                    "another part of the split",
                    'Set split and part, for example part = "train".',
                )


def comparable_part(recipe: Recipe) -> dict[str, Any]:
    """What has to be equal in all runs of a comparison: network, steps, data, augmentation, optimiser, validation."""
    values = recipe.model_dump(mode="json", exclude=set(_OWN_KEYS))
    for kind in ("labeled", "unlabeled", "validation"):
        for table in values[kind]:
            for key in _OWN_DATA_KEYS:
                table.pop(key)
    return values


def check_comparable(recipes: Sequence[Recipe]) -> None:
    """Raises DataError naming the keys in which recipes differ beyond method, share, fold and seed."""
    first, *others = (comparable_part(recipe) for recipe in recipes)
    for recipe, part in zip(recipes[1:], others, strict=True):
        different = [key for key in first if first[key] != part[key]]
        if different:
            raise DataError(
                f"The runs {recipes[0].name} and {recipe.name} differ in {', '.join(different)}.",
                "runs that differ only in method, share, fold and seed",
                "Compare runs of one recipe; keep another one in another --out folder.",
            )
