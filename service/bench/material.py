"""Frames made ready beforehand, so that making them costs nothing while we measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from service.bench.scenarios import StreamSpec
from service.contract.geometry import Image
from service.errors import InvalidRequestError
from service.streams.synthetic import SyntheticScene
from service.streams.video import read_video
from service.wire import PICTURE_CODECS, Codec, encode_picture

_LENGTH_S = 3.0
_FEWEST, _MOST = 25, 250
_BITS_1080P60 = 8_000_000
_PIXEL_RATE_1080P60 = 1920 * 1080 * 60
_ENCODERS = {
    "h264": ("libx264", {"preset": "veryfast", "tune": "zerolatency"}),
    "hevc": ("libx265", {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "log-level=error"}),
}


def make_material(spec: StreamSpec, video: Path | None) -> list[bytes]:
    """Three seconds of a stream as its messages' payloads: pictures, or access units from a key frame on.

    A stream longer than that begins again at the first one, which is a key frame.
    """
    count, size = count_frames(spec.fps), (spec.width, spec.height)
    if spec.codec in PICTURE_CODECS:
        images = islice(load_images(video, size, spec.fps), count)
        return [encode_picture(image_hwc, cast(Codec, spec.codec)) for image_hwc in images]
    return encode_video(islice(_load_again_and_again(video, size, spec.fps), count), spec)


def make_materials(
    specs: Iterable[StreamSpec], video: Path | None
) -> dict[tuple[str, int, int, float], list[bytes]]:
    """The material of each kind of stream, once; see `key_of`."""
    materials: dict[tuple[str, int, int, float], list[bytes]] = {}
    for spec in specs:
        if key_of(spec) not in materials:
            materials[key_of(spec)] = make_material(spec, video)
    return materials


def key_of(spec: StreamSpec) -> tuple[str, int, int, float]:
    """What a stream's material depends on."""
    return spec.codec, spec.width, spec.height, spec.fps


def count_frames(fps: float) -> int:
    """How many frames the material of a stream has."""
    return min(_MOST, max(_FEWEST, round(fps * _LENGTH_S)))


def load_images(video: Path | None, size: tuple[int, int] | None, fps: float) -> Iterator[Image]:
    """Frames, uint8 RGB `(H, W, 3)`: of a file, scaled to `size` (width, height) where it is given, or of the scene.

    The file's come to an end, the scene's do not.
    """
    if video is None:
        scene = SyntheticScene(*(size or (1280, 720)))
        index = 0
        while True:
            yield scene.render(index / fps)[0]
            index += 1
    for frame in read_video(video):
        yield frame.image_hwc if size is None else scale_image(frame.image_hwc, size)


def scale_image(image_hwc: Image, size: tuple[int, int]) -> Image:
    """A picture at `size` (width, height); its aspect ratio may change, for only the amount of work counts here."""
    if (image_hwc.shape[1], image_hwc.shape[0]) == size:
        return image_hwc
    enlarges = size[0] > image_hwc.shape[1]
    scaled = cv2.resize(image_hwc, size, interpolation=cv2.INTER_CUBIC if enlarges else cv2.INTER_AREA)
    return np.asarray(scaled, dtype=np.uint8)


def encode_video(images: Iterable[Image], spec: StreamSpec) -> list[bytes]:
    """Access units in Annex B form, one a picture, without reordering, a key frame every second."""
    if spec.width % 2 or spec.height % 2:
        raise InvalidRequestError(
            f"The size is {spec.width} x {spec.height}.", "even numbers for video", "Change --size."
        )
    context = _open_encoder(spec)
    units: list[bytes] = []
    for index, image_hwc in enumerate(images):
        frame = VideoFrame.from_ndarray(image_hwc, format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts = index
        units += [bytes(packet) for packet in context.encode(frame)]
    units += [bytes(packet) for packet in context.encode(None)]
    return units


def bits_per_s(spec: StreamSpec) -> int:
    """8 Mbit/s for 1080p60, and less for less, but not in proportion: small video needs more bits a pixel."""
    pixel_rate = spec.width * spec.height * spec.fps
    return round(_BITS_1080P60 * math.sqrt(pixel_rate / _PIXEL_RATE_1080P60))


def _open_encoder(spec: StreamSpec) -> VideoCodecContext:
    name, options = _ENCODERS[spec.codec]
    context = cast(VideoCodecContext, av.CodecContext.create(name, "w"))
    rate = Fraction(spec.fps).limit_denominator(1001)
    context.width, context.height, context.pix_fmt = spec.width, spec.height, "yuv420p"
    context.time_base, context.framerate = 1 / rate, rate
    context.gop_size = max(1, round(spec.fps))
    context.bit_rate = bits_per_s(spec)
    context.options = dict(options)
    return context


def _load_again_and_again(video: Path | None, size: tuple[int, int], fps: float) -> Iterator[Image]:
    while True:
        yield from load_images(video, size, fps)
