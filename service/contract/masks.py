"""Label maps as bytes for the wire: PNG, grey or with a palette, COCO run-length encoding, polygons.

A mask is uint8 class ids `(H, W)`; 0 is the background and is never encoded as a shape of its own.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import cv2
import numpy as np
from pycocotools import mask as coco

from service.contract.geometry import Mask
from service.contract.model_card import ClassInfo

MaskFormat = Literal["png", "palette", "rle", "polygons"]
MASK_FORMATS: tuple[str, ...] = get_args(MaskFormat)
MEDIA_TYPES = {
    "png": "image/png",
    "palette": "image/png",
    "rle": "application/json",
    "polygons": "application/json",
}

# Masks are flat areas: unfiltered rows and run-length strategy at the fastest level are both smaller and several times
# quicker than OpenCV's defaults.
_PNG_OPTIONS = [
    cv2.IMWRITE_PNG_COMPRESSION, 1,
    cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE,
]  # fmt: skip
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_IHDR = struct.Struct(">IIBB3s")  # width, height, bits, colour type; compression, filter and interlacing
_PNG_GREY, _PNG_PALETTE = 0, 3
_UNNAMED_COLOUR = (255, 255, 255)


def encode_mask(mask_hw: Mask, mask_format: MaskFormat, classes: Sequence[ClassInfo] = ()) -> bytes:
    """Encode class ids `(H, W)` in one of `MASK_FORMATS`.

    `classes` name the shapes and colour the palette; an id that they lack has no name and is white.
    """
    if mask_format == "png":
        return to_png(mask_hw)
    if mask_format == "palette":
        return to_palette_png(mask_hw, classes)
    shapes = to_rle(mask_hw, classes) if mask_format == "rle" else to_polygons(mask_hw, classes)
    return json.dumps(shapes, separators=(",", ":")).encode()


def decode_mask(data: bytes, mask_format: MaskFormat) -> Mask:
    """The inverse of `encode_mask`, exact in every format. Raises ValueError for bytes that are no mask."""
    try:
        if mask_format in ("png", "palette"):
            return from_png(data)
        shapes = json.loads(data)
        return from_rle(shapes) if mask_format == "rle" else from_polygons(shapes)
    except (KeyError, TypeError, AttributeError, cv2.error) as error:
        raise ValueError(f"these bytes are not a mask in the form {mask_format}") from error


def to_png(mask_hw: Mask) -> bytes:
    """A single-channel 8-bit PNG whose values are the class ids."""
    done, encoded = cv2.imencode(".png", mask_hw, _PNG_OPTIONS)
    if not done:
        raise ValueError(f"OpenCV could not encode a mask of shape {mask_hw.shape} and type {mask_hw.dtype}")
    return encoded.tobytes()


def to_palette_png(mask_hw: Mask, classes: Sequence[ClassInfo]) -> bytes:
    """An 8-bit PNG with a palette: its indexes are the class ids, and programs that show it show the classes' colours.

    OpenCV writes no palettes, but the rows of a grey picture and of indexes are the same bytes: only the header says
    what they mean.
    """
    colours = [info.colour for info in classes]
    colours += [_UNNAMED_COLOUR] * (int(mask_hw.max(initial=0)) + 1 - len(colours))
    palette = bytes(channel for colour in colours for channel in colour)
    return _repaint(to_png(mask_hw), _PNG_PALETTE, _write_chunk(b"PLTE", palette))


def from_png(data: bytes) -> Mask:
    """The class ids `(H, W)` of a PNG made by `to_png` or `to_palette_png`. Raises ValueError."""
    if data.startswith(_PNG_SIGNATURE) and data[25:26] == bytes([_PNG_PALETTE]):
        data = _repaint(data, _PNG_GREY)
    mask_hw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if mask_hw is None or mask_hw.ndim != 2 or mask_hw.dtype != np.uint8:
        raise ValueError("these bytes are not a single-channel 8-bit PNG")
    return np.asarray(mask_hw, dtype=np.uint8)


def to_rle(mask_hw: Mask, classes: Sequence[ClassInfo] = ()) -> dict[str, Any]:
    """`{"size": [H, W], "segments": [{"class_id", "name", "counts"}]}`, counts as COCO's compressed string."""
    segments = []
    for class_id in _present(mask_hw):
        encoded = coco.encode(np.asfortranarray(mask_hw == class_id, dtype=np.uint8))
        segments.append({**_label(class_id, classes), "counts": encoded["counts"].decode("ascii")})
    return {"size": list(mask_hw.shape), "segments": segments}


def from_rle(shapes: dict[str, Any]) -> Mask:
    """The class ids `(H, W)` of what `to_rle` made. Raises ValueError when the runs do not fill the mask."""
    height, width = shapes["size"]
    mask_hw = np.zeros((height, width), np.uint8)
    for segment in shapes["segments"]:
        lengths = _read_lengths(segment["counts"])
        if min(lengths, default=0) < 0 or sum(lengths) != height * width:
            raise ValueError(f"the runs do not fill a mask of {width} x {height}")
        is_inside = np.arange(len(lengths)) % 2 == 1
        mask_hw.T[np.repeat(is_inside, lengths).reshape(width, height)] = segment["class_id"]
    return mask_hw


def to_polygons(mask_hw: Mask, classes: Sequence[ClassInfo] = ()) -> dict[str, Any]:
    """`{"size": [H, W], "polygons": [{"class_id", "name", "points": [[x, y], ...], "hole"}]}`.

    Points are pixel centres on the outline, in the mask's own pixels; a hole lies inside the shape before it.
    """
    polygons = []
    for class_id in _present(mask_hw):
        found = cv2.findContours(
            (mask_hw == class_id).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
        )
        contours, hierarchy = found[-2], found[-1]
        for contour, links in zip(contours, hierarchy.reshape(-1, 4), strict=True):
            points = contour.reshape(-1, 2).tolist()
            polygons.append({**_label(class_id, classes), "points": points, "hole": bool(links[3] >= 0)})
    return {"size": list(mask_hw.shape), "polygons": polygons}


def from_polygons(shapes: dict[str, Any]) -> Mask:
    """The class ids `(H, W)` of what `to_polygons` made."""
    mask_hw = np.zeros(shapes["size"], np.uint8)
    shape_hw = np.zeros_like(mask_hw)
    for index, polygon in enumerate(shapes["polygons"]):
        points = np.asarray(polygon["points"], np.int32).reshape(-1, 1, 2)
        if polygon["hole"]:
            # the outline of a hole belongs to the shape round it
            cv2.fillPoly(shape_hw, [points], 0)
            cv2.polylines(shape_hw, [points], True, 1)
        else:
            shape_hw.fill(0)
            cv2.fillPoly(shape_hw, [points], 1)
        is_last = index + 1 == len(shapes["polygons"]) or not shapes["polygons"][index + 1]["hole"]
        if is_last:
            mask_hw[shape_hw == 1] = polygon["class_id"]
    return mask_hw


def _read_lengths(counts: str) -> list[int]:
    """The lengths of the runs in a COCO string, outside first, down the columns.

    A number is written in groups of five bits from the lowest up, one character each, offset by 48: 0x20 marks
    that more follow, 0x10 in the last one a negative number. From the fourth on, a number is the difference to
    the one two before.
    """
    lengths: list[int] = []
    value = shift = 0
    for byte in counts.encode("ascii"):
        group = byte - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    return lengths


def _label(class_id: int, classes: Sequence[ClassInfo]) -> dict[str, Any]:
    label: dict[str, Any] = {"class_id": class_id}
    return {**label, "name": classes[class_id].name} if class_id < len(classes) else label


def _repaint(png: bytes, colour_type: int, palette: bytes = b"") -> bytes:
    """The same 8-bit pixels under another colour type. Raises ValueError for what is no whole 8-bit PNG."""
    parts = [_PNG_SIGNATURE]
    for kind, content, chunk in _read_chunks(png):
        if kind == b"IHDR":
            parts += [_write_chunk(kind, _set_colour_type(content, colour_type)), palette]
        elif kind in (b"IDAT", b"IEND"):
            parts.append(chunk)
    return b"".join(parts)


def _read_chunks(png: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, content and all bytes of each chunk. Raises ValueError where one is cut short."""
    offset = len(_PNG_SIGNATURE)
    while offset < len(png):
        length, kind = struct.unpack_from(">I4s", png, offset) if offset + 8 <= len(png) else (0, b"")
        end = offset + 12 + length
        if not kind or end > len(png):
            raise ValueError("this PNG is cut short")
        yield kind, png[offset + 8 : end - 4], png[offset:end]
        offset = end


def _write_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _set_colour_type(header: bytes, colour_type: int) -> bytes:
    if len(header) != _PNG_IHDR.size:
        raise ValueError("this PNG has no valid header")
    width, height, bits, _, rest = _PNG_IHDR.unpack(header)
    if bits != 8:
        raise ValueError(f"this PNG has {bits} bits a pixel, not 8")
    return _PNG_IHDR.pack(width, height, bits, colour_type, rest)


def _present(mask_hw: Mask) -> list[int]:
    counts = cv2.calcHist([mask_hw], [0], None, [256], [0, 256]).ravel()
    return [int(class_id) for class_id in np.flatnonzero(counts) if class_id != 0]
