"""The model card: everything a service, an integrator or a reviewer must know about a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from service.contract.card_migrations import bring_up_to_date
from service.errors import BundleError

FORMAT_VERSION: Final = 2
CARD_NAME = "card.json"
MODEL_NAME = "model.onnx"
Precision = Literal["float32", "float16", "bfloat16", "int8"]
"""What a network computes in. A bundle holds a graph for each of float32, float16 and int8 that it can run at; bfloat16
is computed from the float32 graph by runtimes that round while they read it."""

MASK, CONFIDENCE = "mask", "confidence"
"""The outputs of a graph, both uint8 `(N, H, W)`: class ids, and 255 times the probability of the class, rounded."""

CONFIDENCE_TOLERANCE = 2
"""Levels by which two runtimes' confidences of a pixel may differ and still count as equal."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
ColourChannel = Annotated[int, Field(ge=0, le=255)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSize(_Strict):
    """The model's canvas in pixels."""

    height: Annotated[int, Field(ge=32, le=4096)]
    width: Annotated[int, Field(ge=32, le=4096)]


class ClassInfo(_Strict):
    """One class of the mask; id 0 is the background. `colour` is RGB, 0 to 255."""

    id: Annotated[int, Field(ge=0, le=255)]
    name: str
    colour: tuple[ColourChannel, ColourChannel, ColourChannel]


class DataSource(_Strict):
    """Data that a model learned from, and the licence that lets it."""

    name: str
    licence: str
    frames: int
    use: str
    credit: str = ""


class TrainingRun(_Strict):
    """How the checkpoint came to be."""

    recipe: str
    command: str
    commit: str
    split_hash: str
    seed: int
    steps: int


class Metric(_Strict):
    """A measured figure with the data it was measured on. Dice and IoU are 0 to 1, means over frames."""

    data: str
    frames: int
    dice: Share
    iou: Share
    videos: dict[str, Share] = Field(default_factory=dict, description="mean Dice per video")
    classes: dict[str, Share] = Field(
        default_factory=dict, description="mean Dice per class, over the frames in which label or mask has it"
    )


class Parity(_Strict):
    """How far a backend at a precision gives the network's own labels, and its confidences where there are some.

    `dice` and `dice_float32` are means over the labeled frames of `data`: at this precision, and before.
    """

    backend: str
    precision: Precision
    frames: int
    labels_equal: Share
    confidences_equal: Share | None = Field(None, description="within CONFIDENCE_TOLERANCE levels")
    data: str = Field("", description="the labeled frames of both Dice")
    dice: Share | None = None
    dice_float32: Share | None = None


class Model(_Strict):
    """A graph of the network: its file in the bundle, and how it was made if not from the checkpoint."""

    file: Annotated[str, Field(pattern=r"\.onnx$")] = MODEL_NAME
    calibration: str = Field("", description="the frames that the ranges of int8 were measured on")
    calibration_frames: int = 0
    float_nodes: tuple[str, ...] = Field((), description="convolutions that were left in float32")


class ModelCard(_Strict):
    """The card of a bundle. `files` maps each file's path in the bundle to its SHA-256 in hexadecimal."""

    format_version: Literal[2] = FORMAT_VERSION
    name: str
    version: str
    description: str
    classes: tuple[ClassInfo, ...] = Field(min_length=2)
    input_size: InputSize
    fit: Literal["letterbox", "stretch"] = "letterbox"
    intensities: str = Field(
        "", description="what the levels 0 to 255 of a grey picture stand for; empty for pictures of a camera"
    )
    outputs: tuple[str, ...] = (MASK,)
    network: str
    network_options: dict[str, JsonValue] | None = Field(
        None, description="what the network is built with, so that training can start from the bundle"
    )
    method: str
    view: str = Field("", description="which of the method's views this is; empty for the one that predicts")
    parameters: int
    training_data: tuple[DataSource, ...] = ()
    training: TrainingRun | None = None
    metrics: tuple[Metric, ...] = ()
    parity: tuple[Parity, ...] = ()
    models: dict[Precision, Model] = Field({"float32": Model()}, description="a graph for each precision")
    licence: str = "Apache-2.0"
    intended_use: str = "Research use only. Not a medical device."
    limits: tuple[str, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _classes_are_numbered_from_zero(self) -> ModelCard:
        ids = [info.id for info in self.classes]
        if ids != list(range(len(ids))):
            raise ValueError(f"class ids are {ids}; they must be 0, 1, 2, ... in order")
        return self

    @model_validator(mode="after")
    def _has_the_network_itself(self) -> ModelCard:
        if "float32" not in self.models:
            raise ValueError(
                f"models holds {', '.join(self.models) or 'nothing'}; float32 must be among them"
            )
        return self

    @property
    def has_confidence(self) -> bool:
        return CONFIDENCE in self.outputs

    def save(self, path: Path) -> None:
        """Write the card as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def parse(cls, text: str) -> ModelCard:
        """A card from JSON of this or an older format. Raises ValueError that says what is wrong, or RecursionError."""
        return cls.model_validate(bring_up_to_date(json.loads(text), FORMAT_VERSION))

    @classmethod
    def load(cls, path: Path) -> ModelCard:
        """Read a card. Raises BundleError when the file is missing, not JSON, or not a card we know."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{path} cannot be read ({error.__class__.__name__}).",
                f"a bundle folder with a {CARD_NAME}",
                "Name a bundle made by `surgseg-export bundle`.",
            ) from error
        try:
            return cls.parse(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{path} is not a valid model card: {_first_fault(error)}.",
                f"a card of a format up to {FORMAT_VERSION}",
                "Export the bundle again with this version of surgseg-export, or install a newer surgseg.",
            ) from error


def _first_fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg']}"
