"""What travels through the service: pictures, frames, their timelines, and masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from service.contract.bundle import Bundle
from service.contract.geometry import Fit, Image, Mask


class Stage(StrEnum):
    """The parts of one frame's latency, in order. Each is the gap between two marks of its Timeline."""

    DECODE = "decode"
    PREPARE = "prepare"
    WAIT = "wait"
    INFER = "infer"
    ENCODE = "encode"
    SEND = "send"


class DropReason(StrEnum):
    """Why a frame that was received never gave a mask."""

    SUPERSEDED = "superseded"
    """A newer frame of the same stream came before this one was looked at."""
    DEADLINE = "deadline"
    """It waited longer than its stream allows."""
    CLOSED = "closed"
    """Its stream, or the service, closed first."""
    UNDECODABLE = "undecodable"
    """Its bytes are not a picture that we accept."""
    BEHIND = "behind"
    """Its decoder was too slow for the stream and went on at a later key frame."""
    AWAITING_KEY = "awaiting_key"
    """Its decoder had just started, and decoding begins at a key frame."""
    DECODER_LOST = "decoder_lost"
    """Its decoder crashed, hung or was killed while it held the frame."""


class DecoderLoss(StrEnum):
    """Why a stream's decoder process was given up and another one started."""

    ENDED = "ended"
    """It crashed, was killed or ran out of memory, said nonsense, or could not be started."""
    HUNG = "hung"
    """It was silent over its work for too long."""
    SOURCE = "source"
    """The process was sound: its source is silent, has closed, or cannot be opened or read."""


@dataclass(slots=True)
class Timeline:
    """When a frame came, and when each of its stages ended, in seconds of the monotonic clock.

    It has no clock of its own. Stages are gaps between neighbouring marks, so they add up to the total by
    construction. One thread at a time may hold it.
    """

    arrived_at: float
    marks: list[tuple[Stage, float]] = field(default_factory=list)

    @property
    def ended_at(self) -> float:
        """The instant of the last mark, or of arrival where there is none."""
        return self.marks[-1][1] if self.marks else self.arrived_at

    @property
    def total_s(self) -> float:
        """Seconds from arrival to the last mark."""
        return self.ended_at - self.arrived_at

    def mark(self, stage: Stage, ended_at: float) -> None:
        """Say when `stage` ended. Raises ValueError when that lies before the mark that went before."""
        if ended_at < self.ended_at:
            raise ValueError(f"{stage} ends {self.ended_at - ended_at:.6f} s before the stage before it")
        self.marks.append((stage, ended_at))

    def durations_s(self) -> dict[Stage, float]:
        """Seconds per stage; a stage that was marked twice counts both gaps."""
        durations: dict[Stage, float] = {}
        started_at = self.arrived_at
        for stage, ended_at in self.marks:
            durations[stage] = durations.get(stage, 0.0) + (ended_at - started_at)
            started_at = ended_at
        return durations


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """A picture of a video file: `image_hwc` uint8 RGB at source size, `pts_s` its presentation time."""

    image_hwc: Image
    pts_s: float | None


@dataclass(frozen=True, slots=True)
class FittedFrame:
    """A picture out of a source: `canvas_hwc` uint8 RGB at the model's size, placed there as `fit` says.

    Instants are monotonic seconds. `sequence` is there where the source numbers its frames, otherwise the reader does.
    `cost_s` is processor time that it took in another process.
    """

    canvas_hwc: Image
    fit: Fit
    pts_s: float | None
    sequence: int | None
    captured_at_us: int
    arrived_at: float
    decoded_at: float
    prepared_at: float
    cost_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture that is ready for the model: `canvas_hwc` uint8 RGB at the model's input size.

    `sequence` counts the frames received on the stream, from 1. `deadline_at` is the monotonic instant after
    which nobody wants its mask; None means it may wait for ever. `cost_s` is the processor time of decoding and
    fitting it.
    """

    stream_id: str
    sequence: int
    canvas_hwc: Image
    fit: Fit
    timeline: Timeline
    captured_at_us: int = 0
    pts_s: float | None = None
    deadline_at: float | None = None
    cost_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SegmentedFrame:
    """A frame with its mask: `canvas_mask_hw` uint8 class ids at the model's size, owned by the holder.

    `bundle` is the one whose model gave it, and says what the ids mean. `cost_s` is the processor time of encoding it.
    """

    frame: Frame
    canvas_mask_hw: Mask
    bundle: Bundle
    cost_s: float = 0.0
