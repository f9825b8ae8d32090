"""What the service and a decoder process say to each other. Pure: bytes in and out.

The decoder reads bitstreams from strangers, so nothing it says is trusted: its messages are unpacked by fixed layouts
and checked, and never unpickled.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict, dataclass
from typing import Any

from service.contract.geometry import FitRule
from service.frames import DropReason

UNIT, RELEASE, JOB, LAST = b"U", b"R", b"J", b"L"
FRAME, DROP, TAKEN, OPENED, FAILED, ENDED = b"F", b"D", b"T", b"O", b"X", b"E"
MOST_SIDE = 65_535
_UNIT = struct.Struct(">Qd?")
_RELEASE = struct.Struct(">I")
_FRAME = struct.Struct(">QIQIIddddd")
_NUMBER = struct.Struct(">Q")
_REASONS = (DropReason.SUPERSEDED, DropReason.BEHIND, DropReason.UNDECODABLE, DropReason.AWAITING_KEY)


@dataclass(frozen=True, slots=True)
class Job:
    """What a decoder is to do.

    `codec` names a bitstream whose units come as messages; otherwise the decoder opens `url` with `options`. A live job
    keeps up with its source: `behind_s` is how late it may be before it skips to a key frame; None decodes everything.
    `is_file` reads a local file, `is_paced` at the speed of its clock, `is_looped` over and over; the first `skip`
    units of it were accounted for by a decoder before this one. `memory_bytes` is what it may allocate.
    """

    input_height: int
    input_width: int
    fit: FitRule
    max_pixels: int
    memory_bytes: int
    slots: int
    behind_s: float | None = None
    codec: str = ""
    url: str = ""
    options: dict[str, str] | None = None
    is_file: bool = False
    is_paced: bool = False
    is_looped: bool = False
    skip: int = 0

    def pack(self) -> bytes:
        """The message that starts a decoder."""
        return JOB + json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, message: bytes) -> Job:
        """The inverse of `pack`, in the decoder, which trusts the service."""
        return cls(**json.loads(message[1:]))


@dataclass(frozen=True, slots=True)
class FrameMessage:
    """A picture is in a slot. Instants are of the monotonic clock, which all processes of a machine share.

    `cost_s` is the processor time that the decoder used since its last frame.
    """

    sequence: int
    slot: int
    generation: int
    width: int
    height: int
    pts_s: float | None
    arrived_at: float
    decoded_at: float
    prepared_at: float
    cost_s: float

    def pack(self) -> bytes:
        """The message."""
        pts_s = math.nan if self.pts_s is None else self.pts_s
        return FRAME + _FRAME.pack(
            *(self.sequence, self.slot, self.generation, self.width, self.height, pts_s),
            *(self.arrived_at, self.decoded_at, self.prepared_at, self.cost_s),
        )


@dataclass(frozen=True, slots=True)
class DropMessage:
    """Units that gave no picture."""

    reason: DropReason
    sequences: tuple[int, ...]

    def pack(self) -> bytes:
        """The message."""
        numbers = b"".join(_NUMBER.pack(sequence) for sequence in self.sequences)
        return DROP + bytes([_REASONS.index(self.reason)]) + numbers


@dataclass(frozen=True, slots=True)
class Event:
    """Anything else: `kind` is TAKEN, OPENED, FAILED or ENDED, with what it says."""

    kind: bytes
    fields: dict[str, Any]

    def pack(self) -> bytes:
        """The message."""
        return self.kind + json.dumps(self.fields).encode()


def pack_unit(sequence: int, arrived_at: float, is_key: bool, data: bytes) -> bytes:
    """One access unit for the decoder."""
    return UNIT + _UNIT.pack(sequence, arrived_at, is_key) + data


def unpack_unit(message: bytes) -> tuple[int, float, bool, bytes]:
    """The inverse of `pack_unit`."""
    sequence, arrived_at, is_key = _UNIT.unpack_from(message, 1)
    return sequence, arrived_at, is_key, message[1 + _UNIT.size :]


def pack_release(slot: int) -> bytes:
    """The service has copied what was in `slot`."""
    return RELEASE + _RELEASE.pack(slot)


def unpack_release(message: bytes) -> int:
    """The inverse of `pack_release`."""
    return int(_RELEASE.unpack_from(message, 1)[0])


def unpack_from_decoder(message: bytes) -> FrameMessage | DropMessage | Event:
    """What a decoder said. Raises ValueError for anything that a sound decoder does not say."""
    kind, body = message[:1], message[1:]
    try:
        if kind == FRAME:
            return _unpack_frame(body)
        if kind == DROP:
            numbers = (number for (number,) in _NUMBER.iter_unpack(body[1:]))
            return DropMessage(_REASONS[body[0]], tuple(numbers))
        if kind in (TAKEN, OPENED, FAILED, ENDED):
            fields = json.loads(body)
            if isinstance(fields, dict):
                return Event(kind, fields)
    except (struct.error, LookupError, ValueError) as error:
        raise ValueError(f"a decoder's message of kind {kind!r} is malformed: {error}") from error
    raise ValueError(f"a decoder said {message[:20]!r}")


def _unpack_frame(body: bytes) -> FrameMessage:
    sequence, slot, generation, width, height, pts_s, *instants = _FRAME.unpack(body)
    if not (1 <= width <= MOST_SIDE and 1 <= height <= MOST_SIDE):
        raise ValueError(f"a picture of {width} x {height}")
    if not all(math.isfinite(instant) for instant in instants):
        raise ValueError("an instant that is no number")
    return FrameMessage(
        sequence, slot, generation, width, height, None if math.isnan(pts_s) else pts_s, *instants
    )
