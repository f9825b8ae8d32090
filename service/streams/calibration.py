"""What decoding and fitting a picture costs on this machine, measured before the first stream comes.

It is measured in a process of its own (`python -m service.streams.calibration`): codecs must not be at work in the
service's own when that ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from service.contract.geometry import FitRule, Image
from service.contract.model_card import InputSize
from service.contract.video import fit_frame
from service.streams.pictures import decode_fitted
from service.streams.synthetic import SyntheticScene
from service.wire import encode_picture

_WIDTH, _HEIGHT, _FPS, _FRAMES = 1280, 720, 30, 8
# About what an endoscope's encoder sends at this size: noise and all, 8 Mbit/s.
_BIT_RATE = 8_000_000
_OPTIONS = {
    "libx264": {"preset": "ultrafast", "tune": "zerolatency"},
    "libx265": {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "log-level=none"},
}


@dataclass(frozen=True, slots=True)
class PictureCost:
    """Processor seconds of one picture of a codec and of so many pixels."""

    codec: str
    pixels: int
    seconds: float


class Calibration:
    """Measures in a child process. One thread measures, any may stop it."""

    def __init__(self, size: InputSize, rule: FitRule) -> None:
        self._arguments = [str(size.height), str(size.width), rule]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def measure(self) -> Iterator[PictureCost]:
        """Costs as they become known; ends early when stopped."""
        with self._lock:
            if self._is_stopped:
                return
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.streams.calibration", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        with self._process as process:
            for line in process.stdout or ():
                codec, pixels, seconds = json.loads(line)
                yield PictureCost(codec, pixels, seconds)

    def stop(self) -> None:
        """End the measurement, whatever it does; twice does nothing."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()


def measure_picture_costs(size: InputSize, rule: FitRule) -> Iterator[PictureCost]:
    """The cost of a drawn picture in each codec that a stream may have; one that cannot be encoded is left out."""
    scene = SyntheticScene(_WIDTH, _HEIGHT)
    noise = np.random.default_rng(0).integers(0, 12, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)
    images = [
        np.maximum(scene.render(number / _FPS)[0], np.roll(noise, number * 7, axis=1))
        for number in range(_FRAMES)
    ]
    yield _cost("jpeg", _measure_jpeg(images, size, rule))
    yield _cost("png", _measure_png(images[0], size, rule))
    for codec, encoder in (("h264", "libx264"), ("hevc", "libx265")):
        try:
            yield _cost(codec, _measure_video(images, codec, encoder, size, rule))
        except (av.error.FFmpegError, ValueError):
            continue  # this FFmpeg cannot encode it


def _cost(codec: str, seconds: list[float]) -> PictureCost:
    """The median, because the first pictures pay for start-up and key frames cost more."""
    return PictureCost(codec, _WIDTH * _HEIGHT, float(np.median(seconds)))


def _measure_jpeg(images: list[Image], size: InputSize, rule: FitRule) -> list[float]:
    return [_time_picture(encode_picture(image_hwc, "jpeg"), size, rule) for image_hwc in images]


def _measure_png(image_hwc: Image, size: InputSize, rule: FitRule) -> list[float]:
    return [_time_picture(encode_picture(image_hwc, "png"), size, rule)]


def _time_picture(data: bytes, size: InputSize, rule: FitRule) -> float:
    started_s = time.thread_time()
    decode_fitted(data, size, rule, max_pixels=_WIDTH * _HEIGHT)
    return time.thread_time() - started_s


def _measure_video(
    images: list[Image], codec: str, encoder: str, size: InputSize, rule: FitRule
) -> list[float]:
    context = cast(VideoCodecContext, CodecContext.create(codec, "r"))
    context.thread_count = 1  # so that this thread's time is all of it
    canvas_hwc = np.empty((size.height, size.width, 3), np.uint8)
    reformatter = VideoReformatter()
    seconds = []
    for packet in _encode(images, encoder):
        started_s = time.thread_time()
        for frame in context.decode(packet):
            fit_frame(frame, size, rule, canvas_hwc, reformatter)
        seconds.append(time.thread_time() - started_s)
    return seconds


def _encode(images: list[Image], encoder: str) -> list[Packet[VideoStream]]:
    context = cast(VideoCodecContext, CodecContext.create(encoder, "w"))
    context.height, context.width = images[0].shape[:2]
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, _FPS), Fraction(_FPS)
    context.bit_rate, context.options = _BIT_RATE, dict(_OPTIONS[encoder])
    packets: list[Packet[VideoStream]] = []
    for number, image_hwc in enumerate(images):
        frame = VideoFrame.from_ndarray(image_hwc, format="rgb24").reformat(format="yuv420p")
        frame.pts = number
        packets += context.encode(frame)
    return packets + list(context.encode(None))


def main(height: str, width: str, rule: FitRule) -> None:
    """Print a line of JSON for each codec; whoever is being served meanwhile goes first."""
    os.nice(19)
    for cost in measure_picture_costs(InputSize(height=int(height), width=int(width)), rule):
        print(json.dumps([cost.codec, cost.pixels, cost.seconds]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], cast(FitRule, sys.argv[3]))
