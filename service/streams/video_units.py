"""A video file as the access units that lie in it, unchanged: what a client pushes that need not encode."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.bitstream import BitStreamFilterContext

from service.contract.video import describe_av_error, find_video, open_video_file
from service.errors import InvalidRequestError, StreamError

_FILTERS = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}


class VideoUnits:
    """An open file whose video is `codec`, h264 or hevc. Use it as a context manager, from one thread.

    Raises StreamError for what is no video, and InvalidRequestError where the video is of another codec. `average_rate`
    is frames per second as the container claims, or None. `is_reordered`: pictures are shown in another order than
    decoded, so that a decoder holds the last ones back until more come.
    """

    def __init__(self, path: Path, codec: str) -> None:
        self._path = path
        self._container = open_video_file(path)
        try:
            self._stream = find_video(self._container, str(path))
            found = self._stream.codec_context.name
            if found != codec:
                raise InvalidRequestError(
                    f"{path} holds {found}.",
                    f"{codec}, because its access units are pushed as they are",
                    "Push its pictures with --codec jpeg, or name the codec that it holds"
                    f" (one of {', '.join(_FILTERS)}).",
                )
            self._filter = BitStreamFilterContext(_FILTERS[codec], self._stream)
        except BaseException:
            self._container.close()
            raise
        self.average_rate: Fraction | None = self._stream.average_rate
        self.is_reordered = bool(self._stream.codec_context.has_b_frames)

    def __enter__(self) -> VideoUnits:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def units(self) -> Iterator[tuple[float | None, bytes]]:
        """Each access unit in Annex B form, in the order of decoding, with its decoding time in seconds.

        Raises StreamError where the file cannot be read on.
        """
        packets, count = self._container.demux(self._stream), 0
        is_over = False
        while not is_over:
            try:
                packet = next(packets, None)
                is_over = packet is None or not packet.size  # before the filter empties it
                filtered = self._filter.filter(None if is_over else packet)
            except (av.error.FFmpegError, OSError) as error:
                raise self._broken(f"cannot be read on ({describe_av_error(error)})") from error
            for unit in filtered:
                at_s = None if unit.dts is None else float(unit.dts * unit.time_base)
                yield at_s, bytes(unit)
                count += 1
        if not count:
            raise self._broken("holds no picture")

    def _broken(self, found: str) -> StreamError:
        return StreamError(
            f"{self._path} {found}.", "a whole video file", "Copy it again from where it was recorded."
        )
