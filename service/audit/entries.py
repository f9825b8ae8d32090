"""What a record says, one entry a line of JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.contract.geometry import Mask
from service.contract.masks import from_rle
from service.contract.model_card import ClassInfo


class _Entry(BaseModel):
    """`at` is the service's wall clock, UTC. Keys that a later version adds are left out when they are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: datetime


class ModelEntry(_Entry):
    """A model that gives masks from here on; masks name it by `fingerprint`, the SHA-256 of its bundle's card.

    `sha256` is that of the graph that runs.
    """

    kind: Literal["model"] = "model"
    fingerprint: str
    name: str
    version: str
    classes: tuple[ClassInfo, ...]
    backend: str
    precision: str
    runtime_version: str
    sha256: str


class OpenedEntry(_Entry):
    """A stream opened. `origin` is `pushed`, or its address without secrets; `codec` is empty until that is known."""

    kind: Literal["opened"] = "opened"
    stream: str
    name: str
    origin: str
    codec: str
    mode: str


class MaskEntry(_Entry):
    """A frame got its mask at the instant `at`.

    `sequence` counts the stream's frames from 1, the dropped ones too. `latency_ms` has the frame's stages, measured on
    the monotonic clock: they add up to the time from its arrival. `width` and `height` are the source frame's; `mask`
    is run-length encoded as on the wire, covers that frame, and has the model's scale.
    """

    kind: Literal["mask"] = "mask"
    stream: str
    sequence: int
    pts_s: float | None = None
    captured_at_us: int
    latency_ms: dict[str, float]
    model: str
    width: int
    height: int
    mask: dict[str, Any]

    @property
    def mask_hw(self) -> Mask:
        """Class ids uint8 `(H, W)` at the model's scale. Raises ValueError where the runs make no mask."""
        try:
            return from_rle(self.mask)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"frame {self.sequence} of {self.stream} has no mask") from error


class DropEntry(_Entry):
    """A frame gave no mask; `reason` is the cause that the metrics name."""

    kind: Literal["drop"] = "drop"
    stream: str
    sequence: int
    reason: str
    pts_s: float | None = None


class ClosedEntry(_Entry):
    """A stream is closed; `received` is `segmented` and all that was `dropped`, since it opened."""

    kind: Literal["closed"] = "closed"
    stream: str
    received: int
    segmented: int
    dropped: dict[str, int]


Entry = ModelEntry | OpenedEntry | MaskEntry | DropEntry | ClosedEntry
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


def write_line(entry: Entry) -> bytes:
    """An entry as JSON, without a line end."""
    return entry.model_dump_json(exclude_none=True).encode()


def read_line(line: bytes) -> Entry:
    """The inverse of `write_line`. Raises ValueError for what is no entry."""
    try:
        return _ENTRY.validate_json(line)
    except ValidationError as error:
        raise ValueError(f"no entry of a record: {error.errors()[0]['msg']}") from error
