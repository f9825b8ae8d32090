"""Decoding a video file front to back by PyAV: every intact frame with its time, and what was damaged."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.contract.geometry import Image, fit_image, plan_fit
from service.contract.model_card import InputSize
from service.contract.video import EXPECTED_VIDEO, Damage, decode_intact, find_video, open_video_file, to_rgb
from service.errors import DataError, StreamError

_REMEDY = "Remove it from the folder, or convert it: ffmpeg -i FILE -c:v libx264 copy.mp4"
_MISSING_END_S = 1.0
_ASSUMED_RATE = 25


class VideoDecoding:
    """One pass over a video file. `damage` says in a few words what was left out; it is complete after the pass."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ""

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Intact frames in order, each with its presentation time in seconds.

        Raises DataError naming the file when it is no video, or when not one frame can be decoded.
        """
        container, stream = _open(self.path)
        with container:
            stream.thread_type = "AUTO"
            # a flushed frame has no time base of its own, so frame.time is not to be trusted
            time_base = stream.time_base or Fraction(1, av.time_base)
            rate = stream.average_rate or _ASSUMED_RATE
            damage, count, first_s, end_s = Damage(), 0, 0.0, 0.0
            for frame in decode_intact(container, stream, damage):
                pts_s = float(frame.pts * time_base if frame.pts is not None else count / rate)
                first_s = pts_s if count == 0 else first_s
                end_s = max(end_s, pts_s + float((frame.duration or 0) * time_base))
                count += 1
                yield pts_s, frame
            self.damage = _describe(damage, end_s - first_s, _claimed_length_s(container, stream))
            if count == 0:
                found = self.damage or "holds no frame that can be decoded"
                raise DataError(f"{self.path} {found}.", EXPECTED_VIDEO, _REMEDY)


def shrink_to_rgb(frame: VideoFrame, most_lines: int) -> Image:
    """Upright uint8 RGB `(H, W, 3)` as the service reads it; taller pictures are shrunk to `most_lines`."""
    image_hwc = to_rgb(frame)
    height, width = image_hwc.shape[:2]
    if height <= most_lines:
        return image_hwc
    size = InputSize(height=most_lines, width=max(32, round(width * most_lines / height)))
    return fit_image(image_hwc, plan_fit(height, width, size, "stretch"))


def _open(path: Path) -> tuple[InputContainer, VideoStream]:
    """A file's container and its moving pictures. Raises DataError."""
    try:
        container = open_video_file(path)
        try:
            return container, find_video(container, str(path))
        except StreamError:
            container.close()
            raise
    except StreamError as error:
        raise DataError(error.found, error.expected, _REMEDY) from error


def _describe(damage: Damage, length_s: float, claimed_s: float | None) -> str:
    problems = [f"cannot be read to its end ({damage.stop_reason})"] if damage.stop_reason else []
    if damage.packets:
        problems.append(f"has {damage.packets} damaged packets")
    if claimed_s and length_s < claimed_s - _MISSING_END_S:
        problems.append(f"ends after {length_s:.1f} s of {claimed_s:.1f} s")
    return " and ".join(problems)


def _claimed_length_s(container: InputContainer, stream: VideoStream) -> float | None:
    """How long the container says the video is; the whole file's length counts only where nothing else is in it."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None
