"""Video files as frames, by PyAV.

What is intact is delivered, in order; what is damaged is left out up to the next key frame and named by one
StreamError at the end, so a truncated recording gives every frame before the cut. The decoder runs in this
process: use it for files that their owner opens, not for bitstreams from strangers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from service.contract.video import Damage, decode_intact, find_video, open_video_file, to_rgb
from service.errors import StreamError
from service.frames import DecodedFrame

_MISSING_END_S = 0.25


class VideoFile:
    """An open video file, with what the container says about it.

    `average_rate` is frames per second; it, `frame_count` and `duration_s` are what the container claims, or
    None. One thread iterates; any thread may close.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._container = open_video_file(self.path)
        try:
            self._stream = find_video(self._container, str(self.path))
        except StreamError:
            self._container.close()
            raise
        self._stream.thread_type = "AUTO"
        self._lock = threading.Lock()
        self._is_reading = False
        self._is_closed = False
        self.average_rate: Fraction | None = self._stream.average_rate
        self.frame_count: int | None = self._stream.frames or None
        duration = self._container.duration
        self.duration_s: float | None = None if duration is None else duration / av.time_base

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def frames(self) -> Iterator[DecodedFrame]:
        """Decode from the start, once. Raises StreamError at the end if the file was damaged or cut short."""
        with self._lock:
            if self._is_closed:
                return
            self._is_reading = True
        try:
            yield from self._read()
        finally:
            # FFmpeg may not lose its container in mid-read, so the reader frees it, not the thread that closes
            with self._lock:
                self._is_reading = False
                self._is_closed = True
            self._container.close()

    def close(self) -> None:
        """End `frames` after the frame at hand, and free the decoder; closing twice does nothing."""
        with self._lock:
            self._is_closed = True
            if not self._is_reading:
                self._container.close()

    def _read(self) -> Iterator[DecodedFrame]:
        damage = Damage()
        span = _Span()
        time_base = self._stream.time_base or Fraction(1, av.time_base)
        for frame in decode_intact(self._container, self._stream, damage):
            if self._is_closed:
                return
            # a flushed frame has no time base of its own, so frame.time is not to be trusted
            pts_s = None if frame.pts is None else float(frame.pts * time_base)
            span.add(pts_s, float((frame.duration or 0) * time_base))
            yield DecodedFrame(to_rgb(frame), pts_s)
        self._check_whole(damage, span)

    def _check_whole(self, damage: Damage, span: _Span) -> None:
        problems = [f"it cannot be read on ({damage.stop_reason})"] if damage.stop_reason else []
        if damage.packets:
            problems.append(f"{damage.packets} damaged packets were left out up to the next key frame")
        only_video = len(self._container.streams) == 1
        if only_video and self.duration_s and span.length_s < self.duration_s - _MISSING_END_S:
            problems.append(f"it ends after {span.length_s:.2f} s of {self.duration_s:.2f} s")
        if problems or span.count == 0:
            found = "; ".join(problems) or "no frame in it can be decoded"
            raise StreamError(
                f"{self.path} is damaged or truncated: {found} ({span.count} frames read).",
                "a whole video file",
                "Copy it again from where it was recorded.",
            )


def read_video(path: Path | str) -> Iterator[DecodedFrame]:
    """Every intact frame of a file: uint8 RGB `(H, W, 3)`, upright, with its presentation time.

    Raises StreamError before the first frame for what is no video, and after the last one for damage.
    """
    with VideoFile(path) as video:
        yield from video.frames()


@dataclass
class _Span:
    """How much time the frames cover."""

    count: int = 0
    first_s: float | None = None
    length_s: float = 0.0

    def add(self, pts_s: float | None, shown_s: float) -> None:
        self.count += 1
        if pts_s is None:
            return
        self.first_s = pts_s if self.first_s is None else self.first_s
        self.length_s = max(self.length_s, pts_s + shown_s - self.first_s)
