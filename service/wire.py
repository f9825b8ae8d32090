"""The bytes of the streaming protocol, packed and unpacked. Pure: no socket, no clock, no model.

The service and its client both import this module, so the wire has one definition (docs/wire-protocol.md).
All integers are unsigned and big-endian.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np

from service.contract.geometry import Image
from service.errors import (
    InvalidPictureError,
    InvalidRequestError,
    OverloadedError,
    StreamError,
    SurgsegError,
    TooManyRequestsError,
    shorten,
)

PROTOCOL_VERSION = 1
Codec = Literal["jpeg", "png", "h264", "hevc"]
Mode = Literal["latest", "every"]
Shutdown = Literal["close", "move"]
EventType = Literal["ready", "error", "notice", "leaving", "closing"]
CODECS: tuple[str, ...] = get_args(Codec)
VIDEO_CODECS: tuple[str, ...] = ("h264", "hevc")
PICTURE_CODECS: tuple[str, ...] = ("jpeg", "png")
MODES: tuple[str, ...] = get_args(Mode)
SHUTDOWNS: tuple[str, ...] = get_args(Shutdown)
EVENT_TYPES: tuple[str, ...] = get_args(EventType)
END = '{"type":"end"}'
"""The only text that a client sends: no frame follows, answer those under way and close."""

_JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 90]
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1]
_CAPTURED_AT = struct.Struct(">Q")
_HEADER_SIZE = struct.Struct(">I")
MAX_CAPTURED_AT_US = 2**64 - 1
_LONGEST_END = 1000


@dataclass(frozen=True, slots=True)
class PushedFrame:
    """What a client sends for one frame.

    `captured_at_us` is the client's own clock in microseconds, echoed untouched; 0 means unknown.
    `payload` is one encoded picture, or one access unit of a bitstream; never empty.
    """

    captured_at_us: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class MaskHeader:
    """What the service says about one frame; the mask's bytes follow it.

    `sequence` counts the frames received on the stream, from 1. `width` and `height` are the source frame's,
    in pixels: the mask covers exactly that picture at the model's own scale. `mask` names the format of the
    bytes. `latency_ms` maps each stage to its share. `dropped` counts this stream's frames that never reached
    the model, by cause, and `received` all that arrived, both since the stream began; `skipped` counts the
    results this viewer did not get because it was slow. `model` is the beginning of the fingerprint of the bundle whose
    model made the mask.
    """

    sequence: int
    captured_at_us: int
    pts_s: float | None
    width: int
    height: int
    mask: str
    latency_ms: Mapping[str, float]
    dropped: Mapping[str, int]
    received: int
    skipped: int
    model: str


def encode_picture(image_hwc: Image, codec: Codec) -> bytes:
    """Encode uint8 RGB `(H, W, 3)` as jpeg or png. Raises InvalidPictureError for another array, or another codec."""
    if codec not in PICTURE_CODECS:
        raise InvalidPictureError(
            f"A picture is to be sent as {codec}.",
            "the bytes of one access unit, for a codec whose pictures depend on each other",
            f"Encode the video yourself and push its access units, or use {' or '.join(PICTURE_CODECS)}.",
        )
    if image_hwc.dtype != np.uint8 or image_hwc.ndim != 3 or image_hwc.shape[2] != 3 or not image_hwc.size:
        raise InvalidPictureError(
            f"The array is {image_hwc.dtype} of shape {image_hwc.shape}.",
            "uint8 RGB of shape (height, width, 3)",
            "Convert it; OpenCV's pictures are BGR.",
        )
    suffix, options = (".jpg", _JPEG_OPTIONS) if codec == "jpeg" else (".png", _PNG_OPTIONS)
    done, encoded = cv2.imencode(suffix, cv2.cvtColor(image_hwc, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise InvalidPictureError(
            f"OpenCV cannot encode a picture of shape {image_hwc.shape} as {codec}.",
            "fewer than 65,536 pixels a side",
            "Send a smaller picture.",
        )
    return bytes(encoded.tobytes())


def pack_frame(frame: PushedFrame) -> bytes:
    """8 bytes of `captured_at_us`, then the payload. Raises InvalidRequestError for what cannot be sent."""
    if not 0 <= frame.captured_at_us <= MAX_CAPTURED_AT_US:
        raise InvalidRequestError(
            f"captured_at_us is {frame.captured_at_us}.",
            "microseconds from 0 (unknown) to 2**64 - 1",
            "Send any clock of your own that does not run below zero.",
        )
    if not frame.payload:
        raise _empty_payload()
    return _CAPTURED_AT.pack(frame.captured_at_us) + frame.payload


def unpack_frame(message: bytes) -> PushedFrame:
    """The inverse of `pack_frame`. Raises InvalidRequestError when the header or the payload is missing."""
    if len(message) < _CAPTURED_AT.size:
        raise InvalidRequestError(
            f"The message has {len(message)} bytes.",
            f"{_CAPTURED_AT.size} bytes of captured_at_us and then a picture",
            "Put captured_at_us (big-endian, 0 for unknown) before every picture.",
        )
    if len(message) == _CAPTURED_AT.size:
        raise _empty_payload()
    (captured_at_us,) = _CAPTURED_AT.unpack_from(message)
    return PushedFrame(captured_at_us, message[_CAPTURED_AT.size :])


def pack_mask(header: MaskHeader, mask: bytes) -> bytes:
    """4 bytes of length, that many bytes of JSON, then the encoded mask."""
    values = {name: getattr(header, name) for name in _HEADER_TYPES}
    text = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()
    return _HEADER_SIZE.pack(len(text)) + text + mask


def unpack_mask(message: bytes) -> tuple[MaskHeader, bytes]:
    """The inverse of `pack_mask`; fields we do not know are ignored. Raises StreamError for anything else."""
    if len(message) < _HEADER_SIZE.size:
        raise _not_an_answer(f"It has {len(message)} bytes.")
    (size,) = _HEADER_SIZE.unpack_from(message)
    end = _HEADER_SIZE.size + size
    if len(message) < end:
        raise _not_an_answer(f"It has {len(message)} bytes and promises a header of {size}.")
    return _read_header(message[_HEADER_SIZE.size : end]), message[end:]


def pack_event(event_type: EventType, **details: Any) -> str:
    """A text message: a JSON object with `type`, one of `EVENT_TYPES`."""
    return json.dumps({"type": event_type, **details}, separators=(",", ":"))


def unpack_event(message: str) -> dict[str, Any]:
    """The JSON object of a text message; it has a string `type`. Raises StreamError for anything else."""
    try:
        event = json.loads(message)
    except ValueError as error:
        raise _not_an_answer(f"Its text is not JSON: {message[:60]!r}.") from error
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise _not_an_answer(f"Its text is no event: {message[:60]!r}.")
    return event


def is_end(message: str) -> bool:
    """Whether a client's text says `END`; fields that we do not know are ignored."""
    try:
        event = json.loads(message) if len(message) <= _LONGEST_END else None
    except ValueError:
        return False
    return isinstance(event, dict) and event.get("type") == "end"


def describe_error(error: SurgsegError) -> dict[str, Any]:
    """The fields that an `error` event and a problem document share, each of bounded length."""
    found, expected, remedy = shorten(error.found), shorten(error.expected), shorten(error.remedy)
    fields: dict[str, Any] = {
        "slug": error.slug,
        "title": error.title,
        "status": error.status,
        "detail": f"{found} Expected {expected}. {remedy}",
        "found": found,
        "expected": expected,
        "remedy": remedy,
    }
    if isinstance(error, OverloadedError | TooManyRequestsError):
        fields["retry_after_s"] = round(error.retry_after_s, 1)
    return fields


def rebuild_error(fields: Mapping[str, Any]) -> SurgsegError:
    """The error that `describe_error` described; a plain SurgsegError where the kind is unknown."""
    slug = str(fields.get("slug") or fields.get("type", ""))
    kind = _KINDS.get(slug, SurgsegError)
    detail = str(fields.get("detail") or fields.get("title") or f"The service answered {dict(fields)}.")
    found = str(fields.get("found") or detail)
    expected = str(fields.get("expected") or "a request that the service accepts")
    remedy = str(fields.get("remedy") or "Read the service's log.")
    retry_after_s = fields.get("retry_after_s")
    if retry_after_s and issubclass(kind, (OverloadedError, TooManyRequestsError)):
        return kind(found, expected, remedy, float(retry_after_s))
    return kind(found, expected, remedy)


_KINDS: dict[str, type[SurgsegError]] = {kind.slug: kind for kind in SurgsegError.__subclasses__()}


def _read_header(text: bytes) -> MaskHeader:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise _not_an_answer("Its header is not JSON.") from error
    if not isinstance(values, dict):
        raise _not_an_answer("Its header is not a JSON object.")
    for name, types in _HEADER_TYPES.items():
        if name not in values or not isinstance(values[name], types) or isinstance(values[name], bool):
            raise _not_an_answer(f"Its header has no valid {name}.")
    return MaskHeader(**{name: values[name] for name in _HEADER_TYPES})


_HEADER_TYPES: dict[str, tuple[type, ...]] = {
    "sequence": (int,),
    "captured_at_us": (int,),
    "pts_s": (float, int, type(None)),
    "width": (int,),
    "height": (int,),
    "mask": (str,),
    "latency_ms": (dict,),
    "dropped": (dict,),
    "received": (int,),
    "skipped": (int,),
    "model": (str,),
}


def _empty_payload() -> InvalidRequestError:
    return InvalidRequestError(
        "The message has no picture after captured_at_us.",
        "one encoded picture, or one access unit, in every message",
        "Send the frame's bytes in the same message.",
    )


def _not_an_answer(found: str) -> StreamError:
    return StreamError(
        f"A message is not one of this protocol. {found}",
        f"the messages of surgseg's stream protocol, version {PROTOCOL_VERSION}",
        "Check that the address is that of a surgseg service of the same version.",
    )
