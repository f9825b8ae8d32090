"""Decoding a video file front to back by PyAV: every intact frame with its time, and what was damaged."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from service.contract.geometry import Image, fit_image, plan_fit
from service.contract.model_card import InputSize
from service.errors import DataError

# FFmpeg's log callback takes the interpreter lock in decoder threads and can deadlock: keep Python out of it.
av.logging.set_level(None)

_EXPECTED = "a video file that FFmpeg can decode (mp4, mkv, mov, avi, ts, ...)"
_REMEDY = "Remove it from the folder, or convert it: ffmpeg -i FILE -c:v libx264 copy.mp4"
_TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})  # FFmpeg draws text files as video
_UNSPECIFIED_COLORSPACE = 2
_HD_HEIGHT = 720  # untagged video from this height on is BT.709 by convention, BT.601 below
_MISSING_END_S = 1.0
_ASSUMED_RATE = 25


class VideoDecoding:
    """One pass over a video file. `damage` says in a few words what was left out; it is complete after the pass."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ""
        self._damaged_packets = 0
        self._stop_reason = ""

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Intact frames in order, each with its presentation time in seconds.

        Raises DataError naming the file when it is no video, or when not one frame can be decoded.
        """
        with _open_container(self.path) as container:
            stream = _find_video(container, self.path)
            stream.thread_type = "AUTO"
            # a flushed frame has no time base of its own, so frame.time is not to be trusted
            time_base = stream.time_base or Fraction(1, av.time_base)
            rate = stream.average_rate or _ASSUMED_RATE
            count, first_s, end_s = 0, 0.0, 0.0
            for frame in self._intact_frames(container, stream):
                pts_s = float(frame.pts * time_base if frame.pts is not None else count / rate)
                first_s = pts_s if count == 0 else first_s
                end_s = max(end_s, pts_s + float((frame.duration or 0) * time_base))
                count += 1
                yield pts_s, frame
            self.damage = self._describe(end_s - first_s, _claimed_length_s(container, stream))
            if count == 0:
                raise DataError(
                    f"{self.path} {self.damage or 'holds no frame that can be decoded'}.", _EXPECTED, _REMEDY
                )

    def _intact_frames(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                self._stop_reason = f"cannot be read to its end ({_reason(error)})"
                return
            if packet is None:
                return
            frames, is_damaged = _decode_packet(packet, stream)
            self._damaged_packets += is_damaged
            yield from frames

    def _describe(self, length_s: float, claimed_s: float | None) -> str:
        problems = [self._stop_reason] if self._stop_reason else []
        if self._damaged_packets:
            problems.append(f"has {self._damaged_packets} damaged packets")
        if claimed_s and length_s < claimed_s - _MISSING_END_S:
            problems.append(f"ends after {length_s:.1f} s of {claimed_s:.1f} s")
        return " and ".join(problems)


def to_rgb(frame: VideoFrame, most_lines: int) -> Image:
    """Upright uint8 RGB `(H, W, 3)`, full range, by the matrix and range the stream declares, as the service reads it.

    Taller pictures are shrunk to `most_lines`.
    """
    colorspace: int = frame.colorspace
    if colorspace == _UNSPECIFIED_COLORSPACE:
        colorspace = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
    turned_hwc = frame.to_ndarray(
        format="rgb24",
        src_colorspace=colorspace,
        src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,
    )
    image_hwc = np.ascontiguousarray(np.rot90(turned_hwc, round(frame.rotation / 90) % 4), dtype=np.uint8)
    height, width = image_hwc.shape[:2]
    if height <= most_lines:
        return image_hwc
    size = InputSize(height=most_lines, width=max(32, round(width * most_lines / height)))
    return fit_image(image_hwc, plan_fit(height, width, size, "stretch"))


def _open_container(path: Path) -> InputContainer:
    try:
        # a path with a colon is no network address, and a playlist may not lead to one
        return av.open(f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a video ({_reason(error)}).", _EXPECTED, _REMEDY) from error


def _find_video(container: InputContainer, path: Path) -> VideoStream:
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise DataError(f"{path} has no video in it, only {kinds}.", _EXPECTED, _REMEDY)
    context = streams[0].codec_context
    if context is None or context.name in _TEXT_CODECS or container.format.name.endswith("_pipe"):
        raise DataError(f"{path} is {container.format.name}, not a video.", _EXPECTED, _REMEDY)
    return streams[0]


def _claimed_length_s(container: InputContainer, stream: VideoStream) -> float | None:
    """How long the container says the video is; the whole file's length counts only where nothing else is in it."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _decode_packet(packet: Packet[VideoStream], stream: VideoStream) -> tuple[list[VideoFrame], bool]:
    """The intact frames that a packet sets free, and whether it brought damage.

    After damage the decoder is flushed and then waits for a key frame: those between refer to what is lost.
    """
    context = stream.codec_context
    frames: list[VideoFrame] = []
    is_damaged = packet.is_corrupt
    try:
        # nothing sets free the frames that wait in the decoder, as at the end of the file
        decoded = context.decode(None if packet.is_corrupt else packet)
    except av.error.FFmpegError:
        decoded, is_damaged = [], True
    for frame in decoded:
        if frame.is_corrupt:
            is_damaged = True
            break
        frames.append(frame)
    if is_damaged:
        context.flush_buffers()
    return frames, is_damaged


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error.__class__.__name__)
