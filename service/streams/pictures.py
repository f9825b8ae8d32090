"""Untrusted bytes into a picture: codec and size from the header first; then, if allowed, decode.

Only JPEG and PNG are accepted. A picture keeps the rows and columns it is stored with: the EXIF orientation
is ignored, so that a mask lies over the stored pixels. Grey becomes RGB with three equal channels, 16-bit colours keep
their high byte, and an alpha channel is left out. 16-bit grey is refused: it is seldom a picture but measured values,
such as a CT's, whose high byte would be a black picture and a wrong mask.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

import cv2
import numpy as np

from service.contract.geometry import Fit, FitRule, Image, fit_image, fit_reduced, plan_fit
from service.contract.model_card import InputSize
from service.errors import InvalidPictureError, PayloadTooLargeError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_IHDR = struct.Struct(">I4sIIBB")
_PNG_GREY_TYPES = frozenset({0, 4})  # without and with an alpha channel
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_FRAME = struct.Struct(">BHHB")
# Start-of-frame markers; C4, C8 and CC are tables, an extension and arithmetic conditioning.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_START_OF_SCAN = 0xDA
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_MAX_SEGMENTS = 2000  # a real header has some tens; more would only burn time
_REMEDY = "Send the whole bytes of one JPEG or PNG picture."
_DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# What JPEG can be decoded at without ever making the whole picture; these flags give BGR.
_REDUCED_FLAGS = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """What the first bytes of a picture say. `codec` is jpeg or png; sizes are pixels."""

    codec: str
    width: int
    height: int


def decode_picture(data: bytes, *, max_pixels: int, codec: str | None = None) -> Image:
    """Decode one whole JPEG or PNG to uint8 RGB `(H, W, 3)`.

    Raises InvalidPictureError when it is neither, is of another codec than the one asked for, or is cut
    short; PayloadTooLargeError, before anything is decoded, when its header names more than `max_pixels`.
    """
    header = _check_header(read_header(data), max_pixels, codec)
    return _decode(data, header, _DECODE_FLAGS, 1)


def decode_fitted(
    data: bytes, size: InputSize, rule: FitRule, *, max_pixels: int, codec: str | None = None
) -> tuple[Image, Fit, float]:
    """Decode a picture for the model alone: uint8 RGB on the canvas, where it lies there, and when it was decoded.

    A JPEG at least twice as large as the model needs is decoded at a half, a quarter or an eighth of its size, which
    takes a third of the time at 1080p and costs a thousandth of Dice (docs/results/fit.md). The instant is of the
    monotonic clock. Raises what `decode_picture` raises.
    """
    header = _check_header(read_header(data), max_pixels, codec)
    fit = plan_fit(header.height, header.width, size, rule)
    scales = [scale for scale in _REDUCED_FLAGS if header.codec == "jpeg" and _is_enough(header, fit, scale)]
    if not scales:
        image_hwc = _decode(data, header, _DECODE_FLAGS, 1)
        decoded_at = time.monotonic()
        return fit_image(image_hwc, fit), fit, decoded_at
    flags = _REDUCED_FLAGS[scales[0]] | cv2.IMREAD_IGNORE_ORIENTATION
    image_bgr = _decode(data, header, flags, scales[0])
    decoded_at = time.monotonic()
    canvas_hwc = fit_reduced(image_bgr, fit)
    cv2.cvtColor(canvas_hwc, cv2.COLOR_BGR2RGB, canvas_hwc)
    return canvas_hwc, fit, decoded_at


def _is_enough(header: PictureHeader, fit: Fit, scale: int) -> bool:
    return header.height >= scale * fit.height and header.width >= scale * fit.width


def _check_header(header: PictureHeader, max_pixels: int, codec: str | None) -> PictureHeader:
    if codec is not None and header.codec != codec:
        raise InvalidPictureError(
            f"The picture is {header.codec}.", f"{codec}, as the stream was opened", f"Send {codec} pictures."
        )
    if header.width * header.height > max_pixels:
        raise PayloadTooLargeError(
            f"The picture is {header.width} x {header.height} pixels.",
            f"at most {max_pixels} pixels",
            "Send a smaller picture; the model works at a much smaller size anyway.",
        )
    return header


def _decode(data: bytes, header: PictureHeader, flags: int, scale: int) -> Image:
    try:
        image_hwc = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        raise _damaged(header) from error
    expected = (-(-header.height // scale), -(-header.width // scale), 3)
    if image_hwc is None or image_hwc.shape != expected:
        raise _damaged(header)
    return np.asarray(image_hwc, dtype=np.uint8)


def read_header(data: bytes) -> PictureHeader:
    """Codec and size, without decoding; also refuses a picture whose end is missing.

    Decoders fill the missing part of a truncated picture with grey and say nothing, and a mask of that would
    be wrong. Raises InvalidPictureError.
    """
    if data.startswith(_PNG_SIGNATURE):
        return _read_png_header(data)
    if data.startswith(_JPEG_START):
        return _read_jpeg_header(data)
    found = f"The bytes begin with {bytes(data[:8]).hex(' ')}." if data else "There are no bytes."
    raise InvalidPictureError(found, "a JPEG or PNG picture", _REMEDY)


def _read_png_header(data: bytes) -> PictureHeader:
    if len(data) < len(_PNG_SIGNATURE) + _PNG_IHDR.size:
        raise _truncated("png", len(data))
    length, kind, width, height, bits, colour_type = _PNG_IHDR.unpack_from(data, len(_PNG_SIGNATURE))
    if (length, kind) != (13, b"IHDR") or not width or not height:
        raise InvalidPictureError("The PNG has no valid IHDR chunk.", "a PNG picture", _REMEDY)
    if _PNG_END not in data[-64:] and _PNG_END not in data:
        raise _truncated("png", len(data))
    if bits == 16 and colour_type in _PNG_GREY_TYPES:
        raise InvalidPictureError(
            f"The PNG is {width} x {height} with 16-bit grey samples.",
            "8-bit samples, because the model knows the levels 0 to 255 only",
            "Scale the values to 0 to 255 as those of the model's training pictures were, which the card's intensities "
            "may say (GET /v1/model), and send 8 bits.",
        )
    return PictureHeader("png", width, height)


def _read_jpeg_header(data: bytes) -> PictureHeader:
    header: PictureHeader | None = None
    offset = 2
    for _ in range(_MAX_SEGMENTS):
        while data[offset : offset + 2] == b"\xff\xff":  # fill bytes before a marker
            offset += 1
        if len(data) < offset + 4:
            raise _truncated("jpeg", len(data))
        prefix, marker, length = struct.unpack_from(">BBH", data, offset)
        if prefix != 0xFF:
            break
        if marker in _JPEG_ALONE:
            offset += 2
            continue
        if marker in _JPEG_FRAMES:
            header = _read_jpeg_frame(data, offset + 4)
        offset += 2 + length
        if marker == _JPEG_START_OF_SCAN and header is not None:
            # Inside a scan FF is always followed by 00 or a restart marker, so this is the true end.
            if data.find(_JPEG_END, offset) < 0:
                raise _truncated("jpeg", len(data))
            return header
    raise InvalidPictureError("The JPEG has no valid frame header.", "a JPEG picture", _REMEDY)


def _read_jpeg_frame(data: bytes, offset: int) -> PictureHeader:
    if len(data) < offset + _JPEG_FRAME.size:
        raise _truncated("jpeg", len(data))
    precision, height, width, _ = _JPEG_FRAME.unpack_from(data, offset)
    if precision != 8 or not width or not height:
        found = f"The JPEG is {width} x {height} with {precision}-bit samples."
        raise InvalidPictureError(found, "8-bit samples and a size in the header", _REMEDY)
    return PictureHeader("jpeg", width, height)


def _truncated(codec: str, size_bytes: int) -> InvalidPictureError:
    return InvalidPictureError(
        f"The {codec} picture ends after {size_bytes} bytes, before its end marker.",
        "a whole picture",
        _REMEDY,
    )


def _damaged(header: PictureHeader) -> InvalidPictureError:
    return InvalidPictureError(
        f"The {header.width} x {header.height} {header.codec} picture is damaged.", "a picture", _REMEDY
    )
