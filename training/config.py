"""Recipes: TOML files read into typed configuration, where an unknown key is an error that names the nearest one."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.contract.model_card import ClassInfo, DataSource, InputSize
from service.errors import DataError

RECIPES = Path(__file__).parent / "recipes"
Table = TypeVar("Table", bound=BaseModel)
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Strict):
    """One data set: `source` is READER:PATH, `split` and `part` choose frames, `weight` how often it is drawn.

    `aspect` is the range of true width / height to restore pictures of unknown aspect to; empty keeps their own.
    `share` keeps that share of every video's frames, spread over the video, chosen by `share_seed`; with `share_of`
    "videos" it keeps that share of the videos whole, as patients of volumes want it. `screen` leaves out
    frames that are not worth learning from (black, out of the body, doubles); for unlabeled data only. `labels` is a
    file of masks (training/data/labels.py) that take the place of the data set's own.
    """

    source: str
    split: str = ""
    part: str = ""
    labels: str = ""
    weight: Annotated[float, Field(gt=0)] = 1.0
    aspect: tuple[float, ...] = ()
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    share_seed: int = 0
    share_of: Literal["frames", "videos"] = "frames"
    screen: bool = False
    card: DataSource | None = None


class NetworkConfig(_Strict):
    """`options` are passed to the network's class."""

    name: str = "edge"
    options: dict[str, Any] = {}


class OptimizerConfig(_Strict):
    """AdamW or Adam; weight decay spares biases and BatchNorm."""

    name: Literal["adamw", "adam"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    gradient_clip: Annotated[float, Field(gt=0)] = 5.0


class AugmentConfig(_Strict):
    """Ranges and probabilities of the augmentation (training/data/augment.py).

    `grey` keeps the channels of every pixel equal, as scanners' pictures have them. `paste_colour` is how often pasted
    instruments are given colours of their own first, so that none belongs to a tissue.
    """

    grey: bool = False
    scale: tuple[float, float] = (0.8, 2.0)
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 40.0
    aspect_jitter: ShareBelowOne = 0.15
    flip: Share = 0.5
    flip_vertical: Share = 0.2
    colour: Share = 0.8
    grayscale: Share = 0.05
    blur: Share = 0.2
    noise: Share = 0.25
    jpeg: Share = 0.2
    smoke: Share = 0.15
    view_circle: Share = 0.3
    shade: Share = 0.3
    cutout: Share = 0.15
    grid_mask: Share = 0.0
    paste: Share = 0.3
    paste_colour: Share = 0.0


# Appearance only: an unlabeled picture is moved and scaled by [augment], once for all its views. `paste` lays a labeled
# picture's instruments over it, in all its views.
STRONG = AugmentConfig(
    colour=1.0, grayscale=0.2, blur=0.5, noise=0.4, jpeg=0.3, smoke=0.3, shade=0.4, grid_mask=0.4, paste=0.0
)


class Recipe(_Strict):
    """Everything that decides a training run; saved with every checkpoint.

    Each step learns from `accumulate` batches, one after another, so from accumulate x batch_size labeled pictures.
    `intensities` says what the levels 0 to 255 of a grey picture stand for, such as Hounsfield units from -160 to 240.
    `init_from` is a checkpoint whose weights the method's networks start from, where names and shapes agree.
    """

    name: str
    description: str = ""
    seed: int = 0
    steps: Positive = 1000
    batch_size: Positive = 8
    unlabeled_batch_size: Positive = 8
    accumulate: Positive = 1
    init_from: str = ""
    workers: Annotated[int, Field(ge=0)] = 1
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    validate_every: Positive = 200
    save_every: Positive = 200
    input_size: InputSize = InputSize(height=256, width=416)
    fit: Literal["letterbox", "stretch"] = "letterbox"
    intensities: str = ""
    progressive: tuple[tuple[float, float], ...] = ()
    classes: tuple[ClassInfo, ...] = (
        ClassInfo(id=0, name="background", colour=(0, 0, 0)),
        ClassInfo(id=1, name="instrument", colour=(0, 224, 160)),
    )
    labeled: tuple[DataConfig, ...] = Field(min_length=1)
    unlabeled: tuple[DataConfig, ...] = ()
    validation: tuple[DataConfig, ...] = Field(min_length=1)
    network: NetworkConfig = NetworkConfig()
    method: dict[str, Any] = {"name": "supervised"}
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    strong: AugmentConfig = STRONG

    @field_validator("strong", mode="before")
    @classmethod
    def _keep_strong(cls, value: Any) -> Any:
        """A recipe that names some keys of [strong] keeps the others strong."""
        return {**STRONG.model_dump(), **value} if isinstance(value, dict) else value

    @property
    def method_name(self) -> str:
        return str(self.method.get("name", "supervised"))

    @property
    def method_options(self) -> dict[str, Any]:
        return {key: value for key, value in self.method.items() if key != "name"}


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe; a bare name is one of the recipes that ship. `overrides` are `dotted.key=value` in TOML."""
    path, table = read_table(path, RECIPES, "recipe")
    table.setdefault("name", path.stem)
    for override in overrides or []:
        _apply_override(table, override)
    return parse_table(Recipe, table, str(path))


def read_table(path: Path, shipped: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """The file that `path` names, and its TOML; a bare name is a file of the folder `shipped`. Raises DataError.

    `kind` is what the file is called in the error.
    """
    if not path.is_file() and (shipped / path.with_suffix(".toml").name).is_file():
        path = shipped / path.with_suffix(".toml").name
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in shipped.glob("*.toml")))
        raise DataError(
            f"There is no {kind} {path}.", f"a TOML file, or one of {known}", "Check the path."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not valid TOML: {error}.", f"a {kind}", "Mend the line it names."
        ) from error


def parse_table(
    table_class: type[Table],
    values: dict[str, Any],
    where: str,
    *,
    guide: str = "docs/training.md",
    kind: str = "recipe",
) -> Table:
    """Check a table of a TOML file. Raises DataError with the key, what is wrong, and the nearest known key.

    `guide` is the document that explains the keys, `kind` what the file is called.
    """
    try:
        return table_class.model_validate_json(json.dumps(values))
    except ValidationError as error:
        faults = error.errors()
        # a key that is misspelt is missing too, but that is not what helps
        first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known_keys(table_class, first["loc"][:-1])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Remove it."
            raise DataError(f"{where}: unknown key {key!r}.", f"one of {', '.join(known)}", hint) from error
        found = f"{where}: {key} is {first['input']!r}: {first['msg']}."
        if first["type"] == "missing":
            found = f"{where}: {key} is missing."
        raise DataError(found, f"a value as {guide} says", f"Mend the {kind}.") from error
    except TypeError as error:
        raise DataError(
            f"{where}: {error}.", "strings, numbers, lists and tables", f"Mend the {kind}."
        ) from error


def _known_keys(table_class: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    current: Any = table_class
    for part in location:
        if isinstance(part, str) and isinstance(current, type) and issubclass(current, BaseModel):
            annotation = current.model_fields[part].annotation
            inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
            current = next((a for a in inner if issubclass(a, BaseModel)), current)
    return list(current.model_fields)


def parse_value(text: str) -> Any:
    """A value of the command line as TOML; what is not TOML is text, so that paths need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _apply_override(table: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise DataError(
            f"--set {override!r} has no value.",
            "key=value",
            "For example --set optimizer.learning_rate=1e-3.",
        )
    value = parse_value(text)
    *parents, key = dotted.strip().split(".")
    current: Any = table
    try:
        for parent in parents:
            current = current[int(parent)] if isinstance(current, list) else current.setdefault(parent, {})
        current[key] = value
    except (IndexError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"--set {override!r} leads nowhere: the recipe has no such table.",
            "dotted keys",
            "Check the recipe.",
        ) from error
