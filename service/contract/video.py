"""Reading video by PyAV: what a file must be, which of its frames are intact, and how a frame becomes RGB.

Training and service read files through the same functions, so a video gives the same pictures in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from service.contract.geometry import Fit, FitRule, Image, crop_canvas, plan_fit
from service.contract.model_card import InputSize
from service.errors import StreamError

# FFmpeg's log callback takes the interpreter lock in decoder threads and can deadlock: keep Python out of it.
av.logging.set_level(None)

EXPECTED_VIDEO = "a video file that FFmpeg can decode (mp4, mkv, mov, avi, ts, ...)"
_REMEDY = "Check the file, or convert it: ffmpeg -i FILE -c:v libx264 copy.mp4"
_TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})  # FFmpeg draws text files as video
# Formats that hold their pictures themselves. Playlists (HLS, DASH, concat, SDP, image sequences) are left out: they
# name other files, which nobody has allowed.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,m4v,mjpeg,av1,obu,ivf,asf,flv,mxf,ogg,"
    "dv,nut,gif,wav,mp3"
)
_UNSPECIFIED_COLORSPACE = 2
_HD_HEIGHT = 720  # untagged video from this height on is BT.709 by convention, BT.601 below


@dataclass
class Damage:
    """What a pass over a video left out: packets, and why it stopped before the end, if it did."""

    packets: int = 0
    stop_reason: str = ""


def open_video_file(path: Path) -> InputContainer:
    """Open a local file. Raises StreamError."""
    if not path.exists():
        raise StreamError(f"There is no file {path}.", EXPECTED_VIDEO, "Check the path.")
    if not path.is_file():
        raise StreamError(f"{path} is not a file.", EXPECTED_VIDEO, "Name one video file.")
    if path.stat().st_size == 0:
        raise StreamError(f"{path} is empty.", EXPECTED_VIDEO, _REMEDY)
    try:
        # a path with a colon is no network address, and no playlist leads to one or to another file
        options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
        return av.open(f"file:{path}", metadata_errors="replace", options=options)
    except av.error.ArgumentError as error:  # what FFmpeg says of a format that is not in the list
        raise StreamError(
            f"{path} is not a video (a playlist, or a format that is not read).", EXPECTED_VIDEO, _REMEDY
        ) from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise StreamError(
            f"{path} is not a video ({describe_av_error(error)}).", EXPECTED_VIDEO, _REMEDY
        ) from error


def find_video(container: InputContainer, name: str) -> VideoStream:
    """The first moving pictures in a container that errors call `name`. Raises StreamError."""
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise StreamError(
            f"{name} has no video in it, only {kinds}.", EXPECTED_VIDEO, "Name one with pictures."
        )
    stream = streams[0]
    is_text = stream.codec_context is None or stream.codec_context.name in _TEXT_CODECS
    if is_text or container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise StreamError(f"{name} is {container.format.name}, not a video.", EXPECTED_VIDEO, _REMEDY)
    return stream


def decode_intact(container: InputContainer, stream: VideoStream, damage: Damage) -> Iterator[VideoFrame]:
    """Intact frames, in order of presentation. After damage wait for a key frame: those between refer to what is lost.

    Never raises for what is in the file: `damage`, complete at the end, says what is missing.
    """
    resumes_at_key = False
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            damage.stop_reason = describe_av_error(error)
            return
        if packet is None:
            return
        is_flush = packet.size == 0
        if resumes_at_key and not is_flush and not packet.is_keyframe:
            continue
        frames, resumes_at_key = _decode_packet(packet, stream)
        damage.packets += resumes_at_key
        yield from frames


def to_rgb(frame: VideoFrame) -> Image:
    """Upright uint8 RGB `(H, W, 3)`, full range, C-contiguous, by the matrix and range that the stream declares."""
    image_hwc = frame.to_ndarray(
        format="rgb24",
        src_colorspace=find_colorspace(frame),
        src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,
    )
    return np.ascontiguousarray(np.rot90(image_hwc, count_quarter_turns(frame)), dtype=np.uint8)


def fit_frame(
    frame: VideoFrame, size: InputSize, rule: FitRule, canvas_hwc: Image, reformatter: VideoReformatter
) -> Fit:
    """Put a frame on a uint8 RGB canvas `(H, W, 3)` of `size`, upright, without ever making it RGB at full size.

    The geometry is `plan_fit`'s. The pixels are FFmpeg's area averaging of the planes, not `fit_image`'s of RGB: a
    quarter of the time at 1080p, and not the same bytes (docs/results/fit.md says what that costs). `reformatter` is
    the stream's own; it keeps its tables while sizes stay the same.
    """
    turns = count_quarter_turns(frame)
    height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    fit = plan_fit(height, width, size, rule)
    rows, columns = (fit.width, fit.height) if turns % 2 else (fit.height, fit.width)
    shrinks = fit.height < height or fit.width < width
    scaled = reformatter.reformat(
        frame,
        columns,
        rows,
        "rgb24",
        src_colorspace=find_colorspace(frame),
        interpolation=Interpolation.AREA if shrinks else Interpolation.BILINEAR,
        src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    plane = scaled.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(rows, plane.line_size)
    image_hwc = lines[:, : columns * 3].reshape(rows, columns, 3)
    if (fit.height, fit.width) != (fit.canvas_height, fit.canvas_width):
        canvas_hwc.fill(0)
    crop_canvas(canvas_hwc, fit)[...] = np.rot90(image_hwc, turns)
    return fit


def find_colorspace(frame: VideoFrame) -> int:
    """The matrix from YUV to RGB: the one declared, or the one that its height makes usual."""
    colorspace: int = frame.colorspace
    if colorspace != _UNSPECIFIED_COLORSPACE:
        return colorspace
    return Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601


def count_quarter_turns(frame: VideoFrame) -> int:
    """How many times a frame has to be turned by 90 degrees, counter-clockwise, to stand upright: 0 to 3."""
    return round(frame.rotation / 90) % 4


def describe_av_error(error: Exception) -> str:
    """FFmpeg's reason in a few words."""
    return str(getattr(error, "strerror", None) or error.__class__.__name__)


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _decode_packet(packet: Packet[VideoStream], stream: VideoStream) -> tuple[list[VideoFrame], bool]:
    """The intact frames that a packet sets free, and whether it brought damage; after damage the decoder is empty."""
    context = stream.codec_context
    intact: list[VideoFrame] = []
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
        intact.append(frame)
    if is_damaged:
        context.flush_buffers()
    return intact, is_damaged
