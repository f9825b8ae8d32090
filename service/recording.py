"""Writing an H.264 video: whole and under its own name, or not at all."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from service.contract.geometry import Image

_TICKS_PER_S = 90_000  # divides the usual frame rates, 29.97 as well, without rounding
_HD_HEIGHT = 720
_BT709, _BT601 = 1, 6  # code points of ITU-T H.273, which H.264 and FFmpeg share


class VideoWriter:
    """An mp4 that players open anywhere (H.264, 4:2:0). Use it as a context manager, from one thread.

    The file appears at `path` when the block ends well; after an exception nothing is left. 4:2:0 needs even
    sides, so an odd picture is shown with its last row or column twice.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._path = path
        self._partial_path = path.with_name(f".{path.name}.partial")
        self._rate = rate
        self._container = av.open(
            str(self._partial_path), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self._stream: VideoStream | None = None
        self._last_tick = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None and self._stream is not None:
                self._partial_path.replace(self._path)
        finally:
            self._partial_path.unlink(missing_ok=True)

    def write(self, image_hwc: Image, pts_s: float | None) -> None:
        """Append uint8 RGB `(H, W, 3)`, shown at `pts_s`; one step after the last where that is None or past.

        A frame of another size than the first is stretched to it.
        """
        height, width = image_hwc.shape[:2]
        even_hwc = cv2.copyMakeBorder(image_hwc, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._stream is None:
            self._stream = self._add_stream(*even_hwc.shape[:2])
        if even_hwc.shape[:2] != (self._stream.height, self._stream.width):
            even_hwc = cv2.resize(even_hwc, (self._stream.width, self._stream.height))
        is_hd = height >= _HD_HEIGHT
        frame = VideoFrame.from_ndarray(np.asarray(even_hwc, np.uint8), format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709 if is_hd else Colorspace.ITU601,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = self._next_tick(pts_s), Fraction(1, _TICKS_PER_S)
        self._container.mux(self._stream.encode(frame))

    def _add_stream(self, height: int, width: int) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        context = stream.codec_context
        context.time_base = Fraction(1, _TICKS_PER_S)
        code = _BT709 if height >= _HD_HEIGHT else _BT601
        context.colorspace = context.color_primaries = context.color_trc = code
        context.color_range = ColorRange.MPEG
        return stream

    def _next_tick(self, pts_s: float | None) -> int:
        tick = -1 if pts_s is None else round(pts_s * _TICKS_PER_S)
        if tick <= self._last_tick:
            step = max(1, round(_TICKS_PER_S / self._rate))
            tick = self._last_tick + step if self._last_tick >= 0 else 0
        self._last_tick = tick
        return tick
