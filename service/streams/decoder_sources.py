"""What a decoder opens itself: files, RTSP and MPEG-TS over UDP. Used in the decoder's process only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from service.contract.video import describe_av_error, find_video, open_video_file
from service.errors import StreamError
from service.streams.decoder_messages import Job

_NAP_S = 0.5  # a paced file that is to end soon must not sleep through it


class PulledSource:
    """An open container and its video. `context` decodes; one thread reads `packets`, another may decode."""

    def __init__(self, container: InputContainer, stream: VideoStream, job: Job) -> None:
        self._container = container
        self._stream = stream
        self._job = job
        self.context: VideoCodecContext = stream.codec_context
        self.context.thread_type = ThreadType.SLICE  # threads that share a sequence would hold pictures back

    def __enter__(self) -> PulledSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec."""
        return self.context.name

    def packets(self) -> Iterator[tuple[Packet[VideoStream], float | None]]:
        """The packets of the video with their presentation times, as they come; of a paced file, when they are due.

        Raises what FFmpeg raises.
        """
        time_base = float(self._stream.time_base or 1 / av.time_base)
        wait = Pacer(time.monotonic, time.sleep).wait if self._job.is_paced else None
        for number, packet in enumerate(self._container.demux(self._stream)):
            if packet.size == 0:
                return
            if wait is not None and packet.dts is not None and number >= self._job.skip:
                wait(packet.dts * time_base)
            yield packet, None if packet.pts is None else packet.pts * time_base


class Pacer:
    """Plays time stamps at the speed of the clock, from the first one on; stamps that run back begin anew."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._clock = clock
        self._sleep = sleep
        self._offset_s = 0.0
        self._last_s: float | None = None

    def wait(self, stamp_s: float) -> None:
        """Sleep until `stamp_s` is due."""
        now = self._clock()
        if self._last_s is None or stamp_s < self._last_s:
            self._offset_s = now - stamp_s
        self._last_s = stamp_s
        while (left_s := self._offset_s + stamp_s - self._clock()) > 0:
            self._sleep(min(left_s, _NAP_S))


def open_source(job: Job) -> PulledSource:
    """Open what the job names. Raises StreamError; may wait for as long as the network does."""
    container = open_video_file(Path(job.url)) if job.is_file else _open_network(job)
    try:
        return PulledSource(container, find_video(container, "The source"), job)
    except StreamError:
        container.close()
        raise


def _open_network(job: Job) -> InputContainer:
    container_format = "mpegts" if job.url.startswith("udp:") else "rtsp"
    try:
        return av.open(job.url, format=container_format, options=job.options or {}, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        # the exception's own text holds the url, and with it a camera's password
        raise StreamError(
            f"its source cannot be opened ({describe_av_error(error)})",
            "a source that sends video",
            "Check its address, and whether it is on.",
        ) from None
