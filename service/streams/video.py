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
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from service.contract.geometry import Image
from service.errors import StreamError
from service.frames import DecodedFrame

# FFmpeg's log callback takes the interpreter lock in decoder threads and can deadlock: keep Python out of it.
av.logging.set_level(None)

_EXPECTED = "a video file that FFmpeg can decode (mp4, mkv, mov, avi, ts, ...)"
_REMEDY = "Check the file, or convert it: ffmpeg -i FILE -c:v libx264 copy.mp4"
_TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})  # FFmpeg draws text files as video
_UNSPECIFIED_COLORSPACE = 2
_HD_HEIGHT = 720  # untagged video from this height on is BT.709 by convention, BT.601 below
_MISSING_END_S = 0.25


class VideoFile:
    """An open video file: a FrameSource with what the container says about it.

    `average_rate` is frames per second; it, `frame_count` and `duration_s` are what the container claims, or
    None. One thread iterates; any thread may close.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._container = _open_container(self.path)
        try:
            self._stream = _find_video(self._container, self.path)
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
        damage = _Damage()
        span = _Span()
        time_base = self._stream.time_base or Fraction(1, av.time_base)
        for frame in _decode(self._container, self._stream, damage):
            if self._is_closed:
                return
            # a flushed frame has no time base of its own, so frame.time is not to be trusted
            pts_s = None if frame.pts is None else float(frame.pts * time_base)
            span.add(pts_s, float((frame.duration or 0) * time_base))
            yield DecodedFrame(_to_rgb(frame), pts_s)
        self._check_whole(damage, span)

    def _check_whole(self, damage: _Damage, span: _Span) -> None:
        problems = []
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
                _REMEDY,
            )


def read_video(path: Path | str) -> Iterator[DecodedFrame]:
    """Every intact frame of a file: uint8 RGB `(H, W, 3)`, upright, with its presentation time.

    Raises StreamError before the first frame for what is no video, and after the last one for damage.
    """
    with VideoFile(path) as video:
        yield from video.frames()


@dataclass
class _Damage:
    packets: int = 0


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


def _open_container(path: Path) -> InputContainer:
    if not path.exists():
        raise StreamError(f"There is no file {path}.", _EXPECTED, "Check the path.")
    if not path.is_file():
        raise StreamError(f"{path} is not a file.", _EXPECTED, "Name one video file.")
    if path.stat().st_size == 0:
        raise StreamError(f"{path} is empty.", _EXPECTED, _REMEDY)
    try:
        # a path with a colon is no network address, and a playlist may not lead to one
        return av.open(f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise StreamError(f"{path} is not a video ({_reason(error)}).", _EXPECTED, _REMEDY) from error


def _find_video(container: InputContainer, path: Path) -> VideoStream:
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise StreamError(
            f"{path} has no video in it, only {kinds}.", _EXPECTED, "Name a file with pictures."
        )
    stream = streams[0]
    is_text = stream.codec_context is None or stream.codec_context.name in _TEXT_CODECS
    if is_text or container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise StreamError(f"{path} is {container.format.name}, not a video.", _EXPECTED, _REMEDY)
    return stream


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _decode(container: InputContainer, stream: VideoStream, damage: _Damage) -> Iterator[VideoFrame]:
    """Decode packet by packet. After damage wait for a key frame: frames between refer to what is lost."""
    resumes_at_key = False
    for packet in container.demux(stream):
        is_flush = packet.size == 0
        if resumes_at_key and not is_flush and not packet.is_keyframe:
            continue
        frames, is_damaged = _decode_packet(packet, stream)
        yield from frames
        resumes_at_key = is_damaged
        damage.packets += is_damaged


def _decode_packet(packet: Packet[VideoStream], stream: VideoStream) -> tuple[list[VideoFrame], bool]:
    """The intact frames that a packet sets free, and whether it brought damage."""
    context = stream.codec_context
    try:
        frames = context.decode(None if packet.is_corrupt else packet)
    except av.error.FFmpegError:
        context.flush_buffers()
        return [], True
    intact: list[VideoFrame] = []
    for frame in frames:
        if frame.is_corrupt:
            context.flush_buffers()
            return intact, True
        intact.append(frame)
    if packet.is_corrupt:
        context.flush_buffers()
    return intact, packet.is_corrupt


def _to_rgb(frame: VideoFrame) -> Image:
    """Upright uint8 RGB, full range, C-contiguous, by the matrix and range that the stream declares."""
    colorspace: int = frame.colorspace
    if colorspace == _UNSPECIFIED_COLORSPACE:
        colorspace = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
    image_hwc = frame.to_ndarray(
        format="rgb24",
        src_colorspace=colorspace,
        src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,
    )
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image_hwc, quarter_turns), dtype=np.uint8)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error.__class__.__name__)
