"""What a user writes of a network that was trained elsewhere: a small TOML file beside its ONNX file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from service.contract.model_card import (
    CONFIDENCE,
    MASK,
    ClassInfo,
    ColourChannel,
    DataSource,
    InputSize,
    ModelCard,
)
from service.errors import DataError
from training.checkpoint import DEVIATION, MEAN
from training.config import parse_table

GUIDE = "docs/wrap.md"
EXAMPLE = """\
name = "our-unet"
version = "1.0.0"
description = "Labels instruments in laparoscopic video."
licence = "CC-BY-4.0"

classes = [
  { name = "background", colour = [0, 0, 0] },
  { name = "instrument", colour = [0, 224, 160] },
]

[input]
size = { height = 384, width = 640 }  # may be left out where the model takes no other
channels = "rgb"                      # or "bgr"
divide_by = 255                       # then mean and std are of pictures from 0 to 1
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[output]
kind = "logits"                       # or "probabilities", "sigmoid logits", "sigmoid probabilities"

[[training_data]]
name = "Our hospital, 12 operations"
licence = "not public"
frames = 4800
use = "train"
"""

Text = Annotated[str, Field(min_length=1)]
Triple = tuple[float, float, float]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Kind = Literal["logits", "probabilities", "sigmoid logits", "sigmoid probabilities"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NamedClass(_Strict):
    """One class; its id is its place in the list. `colour` is RGB, 0 to 255."""

    name: Text
    colour: tuple[ColourChannel, ColourChannel, ColourChannel]


class Scaling(_Strict):
    """`(x / divide_by - mean) / std` for bytes x, channel by channel, in the order that the network takes them."""

    divide_by: float
    mean: Triple
    std: Triple


class ForeignInput(_Strict):
    """How a picture becomes the network's input, float32 `(N, 3, H, W)`.

    Either `divide_by`, `mean` and `std`, or `normalise`: "imagenet" for the usual values of them, "z-score" for each
    picture's own mean and deviation by channel.
    """

    channels: Literal["rgb", "bgr"]
    size: InputSize | None = None
    normalise: Literal["imagenet", "z-score"] | None = None
    divide_by: Deviation | None = None
    mean: Triple | None = None
    std: tuple[Deviation, Deviation, Deviation] | None = None

    @property
    def scaling(self) -> Scaling | None:
        """None where each picture has its own."""
        if self.normalise == "imagenet":
            mean, std = (MEAN, DEVIATION) if self.channels == "rgb" else (MEAN[::-1], DEVIATION[::-1])
            return Scaling(divide_by=255, mean=mean, std=std)
        if self.divide_by is None or self.mean is None or self.std is None:
            return None
        return Scaling(divide_by=self.divide_by, mean=self.mean, std=self.std)


class ForeignOutput(_Strict):
    """What the network gives: float32 `(N, C, h, w)`, at the size of its input or smaller.

    "logits" and "probabilities" have a channel for each class and the largest wins. The "sigmoid" kinds have one for
    each class but the background, which wins where the probability of no other is above `threshold`.
    """

    kind: Kind
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    name: str = ""

    @property
    def is_sigmoid(self) -> bool:
        return self.kind.startswith("sigmoid")

    @property
    def gives_logits(self) -> bool:
        return self.kind.endswith("logits")


class ForeignCard(_Strict):
    """The whole file. `network` and `method` are free text on what was trained, and how."""

    name: Text
    version: Text
    description: Text
    licence: Text
    classes: Annotated[tuple[NamedClass, ...], Field(min_length=2, max_length=256)]
    input: ForeignInput
    output: ForeignOutput
    fit: Literal["letterbox", "stretch"] = "letterbox"
    intensities: str = ""
    network: Text = "foreign"
    method: Text = "foreign"
    training_data: tuple[DataSource, ...] = ()
    limits: tuple[str, ...] = ()
    intended_use: Text = ModelCard.model_fields["intended_use"].default

    @property
    def channels(self) -> int:
        """How many the network's output has."""
        return len(self.classes) - self.output.is_sigmoid

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file. Raises DataError that names the key."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(
                f"There is no card {path}.",
                f"a TOML file as {GUIDE} says",
                "Begin with what `surgseg-export wrap --example` prints.",
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} is not valid TOML: {error}.", "a card", "Mend the line it names."
            ) from error
        card = parse_table(cls, values, str(path), guide=GUIDE, kind="card")
        _check_input(card.input, path)
        _check_threshold(card.output, path)
        return card

    def draft(self, size: InputSize, parameters: int, has_confidence: bool) -> ModelCard:
        """The card of the bundle, still without hashes and parity."""
        classes = (
            ClassInfo(id=index, name=each.name, colour=each.colour) for index, each in enumerate(self.classes)
        )
        shared = ("name", "version", "description", "licence", "fit", "intensities", "network", "method")
        return ModelCard(
            **{key: getattr(self, key) for key in (*shared, "training_data", "limits", "intended_use")},
            classes=tuple(classes),
            input_size=size,
            outputs=(MASK, CONFIDENCE) if has_confidence else (MASK,),
            parameters=parameters,
        )


def _check_input(given: ForeignInput, path: Path) -> None:
    """No normalisation is taken for granted: a wrong one gives masks that are only a little worse."""
    keys = ("divide_by", "mean", "std")
    missing = [key for key in keys if getattr(given, key) is None]
    if given.normalise is None and missing:
        raise DataError(
            f"{path}: input.{missing[0]} is missing.",
            'divide_by, mean and std, or normalise = "imagenet" or "z-score"',
            "Write what the network was trained with.",
        )
    if given.normalise is not None and len(missing) < len(keys):
        twice = next(key for key in keys if key not in missing)
        raise DataError(
            f"{path}: input.normalise and input.{twice} are both given.",
            "one of them",
            f'Remove {twice}: "{given.normalise}" decides it.',
        )


def _check_threshold(given: ForeignOutput, path: Path) -> None:
    if given.is_sigmoid and given.threshold is None:
        raise DataError(
            f"{path}: output.threshold is missing.",
            f"the probability from which {given.kind} mean a class",
            "Write the one that the network was evaluated with, often 0.5.",
        )
    if not given.is_sigmoid and given.threshold is not None:
        raise DataError(
            f"{path}: output.threshold is given, but of {given.kind} the largest wins.",
            'none, or kind = "sigmoid logits" or "sigmoid probabilities"',
            "Remove it, or correct the kind.",
        )
