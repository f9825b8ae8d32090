"""Real H.264 and HEVC access units of pictures that tell their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame

ENCODERS = {"h264": "libx264", "hevc": "libx265"}
BITS = 8


def draw_code(number: int, width: int = 320, height: int = 192) -> np.ndarray:
    """uint8 RGB: `BITS` upright bars, bright where the bit of `number` is set, so that its mask tells it."""
    image_hwc = np.full((height, width, 3), 20, np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            image_hwc[:, bit * width // BITS : (bit + 1) * width // BITS] = 235
    return image_hwc


def read_code(mask_hw: np.ndarray) -> int:
    """The number of a picture of `draw_code`, from its mask."""
    height, width = mask_hw.shape
    return sum(int(mask_hw[height // 2, (2 * bit + 1) * width // (2 * BITS)]) << bit for bit in range(BITS))


def encode_units(
    images: Iterable[np.ndarray],
    codec: str = "h264",
    *,
    keys_every: int = 10,
    pixels: str = "yuv420p",
    is_interlaced: bool = False,
    **options: str,
) -> list[bytes]:
    """Access units in Annex B form, in decoding order, parameter sets before every key frame."""
    images = list(images)
    context = cast(VideoCodecContext, av.CodecContext.create(ENCODERS[codec], "w"))
    context.height, context.width = images[0].shape[:2]
    context.pix_fmt, context.time_base, context.framerate = pixels, Fraction(1, 25), Fraction(25)
    context.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        **_keep_keys(codec, keys_every, is_interlaced),
        **options,
    }
    units: list[bytes] = []
    for number, image_hwc in enumerate(images):
        frame = VideoFrame.from_ndarray(image_hwc, format="rgb24").reformat(format=pixels)
        frame.pts, frame.pict_type = number, PictureType.NONE
        units += [bytes(packet) for packet in context.encode(frame)]
    return units + [bytes(packet) for packet in context.encode(None)]


def encode_codes(
    numbers: Sequence[int], codec: str = "h264", width: int = 320, height: int = 192, **options: Any
) -> list[bytes]:
    """The access units of the pictures of these numbers."""
    return encode_units((draw_code(number, width, height) for number in numbers), codec, **options)


def _keep_keys(codec: str, keys_every: int, is_interlaced: bool) -> dict[str, str]:
    keys = f"keyint={keys_every}:min-keyint={keys_every}:scenecut=0:repeat-headers=1"
    if codec == "h264":
        return {"x264-params": f"{keys}:tff=1" if is_interlaced else keys}
    return {"x265-params": f"{keys}:log-level=none"}
