"""`surgseg stream`: a video file pushed to a running service at its own frame rate, and what came back."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from service.client import Client
from service.contract.geometry import Image
from service.contract.masks import MASK_FORMATS, MaskFormat
from service.credentials import add_credential_arguments, read_credentials
from service.errors import InvalidRequestError, SurgsegError
from service.mask_receiver import MaskMessage
from service.mask_stream import MaskStream
from service.output_files import make_folder, write_whole
from service.streams.video import VideoFile
from service.streams.video_units import VideoUnits
from service.unanswered import Gap, Move
from service.wire import CODECS, MODES, VIDEO_CODECS, Codec, Mode

PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
_RATE_WHEN_UNKNOWN = 25.0
_LIVE_LINE_EVERY_S = 1.0
_MAX_GAP_S = 10.0

File = TypeVar("File", VideoFile, VideoUnits)
TimedPicture = tuple[float, Image | bytes]
"""When a picture is due, in seconds from the first, and the picture."""


@dataclass(slots=True)
class PushReport:
    """What one stream did. Times are milliseconds.

    `round_trip_ms` runs from before the push (encoding included for arrays) to the mask's arrival here;
    `service_ms` is the sum of the stages that the service reports for a frame, from its arrival on.
    """

    pushed: int = 0
    answered: int = 0
    elapsed_s: float = 0.0
    round_trip_ms: list[float] = field(default_factory=list)
    service_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    received: int = 0
    skipped: int = 0
    unread: int = 0
    gaps: list[Gap] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)

    def add(self, message: MaskMessage) -> None:
        """Count one answer to a frame whose `captured_at_us` is our monotonic clock."""
        self.answered += 1
        self.round_trip_ms.append(message.arrived_at * 1e3 - message.captured_at_us / 1e3)
        self.service_ms.append(sum(message.latency_ms.values()))
        for stage, duration_ms in message.latency_ms.items():
            self.stages_ms.setdefault(stage, []).append(duration_ms)
        self.dropped, self.received, self.skipped = dict(message.dropped), message.received, message.skipped

    def settle(self, client: Client, stream: MaskStream) -> None:
        """Take the service's own account of a stream that is still open: frames dropped after the last mask count.

        Without a token that may view, the account that came with the last mask stays; so it does when the stream
        has moved. Replicas number their streams alike: an account that has not received what was pushed is another's.
        """
        if self.gaps or self.moves:
            return
        try:
            accounts = client.streams()
        except SurgsegError:  # a balancer hides what speaks of one replica only
            return
        for account in accounts:
            if account["id"] == stream.ready["stream"] and account["received"] == self.pushed:
                self.received, self.dropped = account["received"], dict(account["dropped"])

    def line(self) -> str:
        """The report so far, in one line."""
        elapsed_s = max(self.elapsed_s, 1e-9)
        latency = summarize(self.round_trip_ms[-500:])
        return (
            f"in {self.pushed / elapsed_s:5.1f} fps  out {self.answered / elapsed_s:5.1f} fps  "
            f"round trip p50 {latency['p50']:.1f} p99 {latency['p99']:.1f} ms  "
            f"dropped {sum(self.dropped.values())}  skipped {self.skipped + self.unread}"
        )

    def table(self) -> str:
        """The whole report, for a terminal."""
        causes = ", ".join(f"{cause} {number}" for cause, number in self.dropped.items()) or "none"
        rate_in, rate_out = self.pushed / self.elapsed_s, self.answered / self.elapsed_s
        head = [
            f"pushed {self.pushed} ({rate_in:.1f}/s), answered {self.answered} ({rate_out:.1f}/s)",
            f"dropped before the model: {causes}; skipped on the way to this viewer: {self.skipped + self.unread}",
        ]
        head += [move.describe() for move in self.moves] + [gap.describe() for gap in self.gaps]
        rows = {**self.stages_ms, "in the service": self.service_ms, "round trip": self.round_trip_ms}
        return "\n".join([*head, format_table({name: summarize(values) for name, values in rows.items()})])


def summarize(values: ArrayLike) -> dict[str, float]:
    """p50, p95, p99, p99.9 and the maximum; NaN where there is no value."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        return dict.fromkeys(PERCENTILES, float("nan"))
    return {name: float(np.percentile(array, rank)) for name, rank in PERCENTILES.items()}


def format_table(rows: dict[str, dict[str, float]]) -> str:
    """Rows of figures under their column names, aligned."""
    columns = list(next(iter(rows.values())))
    width = max(16, *(len(name) + 1 for name in rows))
    lines = [f"{'ms':<{width}}" + "".join(f"{name:>9}" for name in columns)]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{row[column]:9.2f}" for column in columns))
    return "\n".join(lines)


def push_pictures(
    stream: MaskStream,
    pictures: Iterable[TimedPicture],
    *,
    on_mask: Callable[[MaskMessage], None] | None = None,
    on_progress: Callable[[PushReport], None] | None = None,
) -> PushReport:
    """Push each picture when it is due, and read masks in the time between. Raises what the stream raises.

    A late picture goes at once. `on_progress` is called about once a second.
    """
    report = PushReport()
    started_at = told_at = time.monotonic()

    def take(message: MaskMessage) -> None:
        report.add(message)
        report.elapsed_s = max(report.elapsed_s, message.arrived_at - started_at)
        if on_mask is not None:
            on_mask(message)

    for due_s, picture in pictures:
        _read_until(stream, started_at + due_s, take)
        stream.push(picture)
        report.pushed += 1
        report.elapsed_s = time.monotonic() - started_at
        if on_progress is not None and time.monotonic() - told_at >= _LIVE_LINE_EVERY_S:
            told_at = time.monotonic()
            on_progress(report)
    for message in stream.finish():
        take(message)
    report.unread, report.gaps, report.moves = stream.unread, list(stream.gaps), list(stream.moves)
    return report


def time_video(path: Path, fps: float | None, loops: int) -> Iterator[TimedPicture]:
    """A file's frames, `loops` times over, with the time each is due: its own timestamps', or every 1/fps."""
    return _pace(
        lambda: VideoFile(path),
        lambda video: ((frame.pts_s, frame.image_hwc) for frame in video.frames()),
        fps,
        loops,
    )


def time_units(path: Path, codec: str, fps: float | None, loops: int) -> Iterator[TimedPicture]:
    """As `time_video`, with the access units of a file that holds `codec`: they are not decoded, and go as they are."""
    return _pace(lambda: VideoUnits(path, codec), lambda video: video.units(), fps, loops)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `surgseg stream`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a video file")
    parser.add_argument("--url", nargs="+", default=["ws://127.0.0.1:8000"],
                        help="the service, or several replicas of it (ws://127.0.0.1:8000)")  # fmt: skip
    parser.add_argument("--max-gap", type=float, default=_MAX_GAP_S, metavar="SECONDS",
                        help=f"how long the stream may be without service ({_MAX_GAP_S:g}; 0: end)")  # fmt: skip
    parser.add_argument("--fps", type=float, help="frames a second; by default the file's own timestamps")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write each mask here, named by its frame")
    parser.add_argument("--mode", choices=MODES, default="latest", help="latest (live) or every frame")
    parser.add_argument(
        "--codec",
        choices=CODECS,
        default="jpeg",
        help="how frames are sent: h264 and hevc as they lie in the file (jpeg)",
    )
    parser.add_argument("--mask", choices=MASK_FORMATS, default="png", help="form of the masks (png)")
    parser.add_argument("--loop", type=int, default=1, metavar="N", help="play the file N times")
    add_credential_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Push the file and print what came back. Raises SurgsegError."""
    if not 0 <= arguments.max_gap <= 3600:
        raise InvalidRequestError(
            f"--max-gap is {arguments.max_gap:g}.", "0 to 3600 seconds", "Change the option."
        )
    if arguments.loop < 1 or (arguments.fps is not None and not 0 < arguments.fps <= 1000):
        raise InvalidRequestError(
            f"--loop is {arguments.loop}, --fps {arguments.fps}.",
            "--loop of 1 or more, --fps above 0 and up to 1000",
            "Change the option.",
        )
    codec, mask = cast(Codec, arguments.codec), cast(MaskFormat, arguments.mask)
    mode = cast(Mode, arguments.mode)
    if codec in VIDEO_CODECS:
        _check_order(arguments.file, codec, mode)
        pictures = time_units(arguments.file, codec, arguments.fps, arguments.loop)
    else:
        pictures = time_video(arguments.file, arguments.fps, arguments.loop)
    first = next(pictures)  # a file that cannot be read fails before a stream is opened
    with (
        _connect(arguments) as client,
        client.stream(codec=codec, mask=mask, mode=mode, max_gap_s=arguments.max_gap) as stream,
    ):
        report = push_pictures(
            stream,
            chain([first], pictures),
            on_mask=None if arguments.out is None else _mask_writer(arguments.out),
            on_progress=_show_progress,
        )
        report.settle(client, stream)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(report.table())
    return 0


def _connect(arguments: argparse.Namespace) -> Client:
    credentials = read_credentials(arguments)
    return Client(arguments.url, token=credentials.token, authority=credentials.authority)


def _check_order(path: Path, codec: str, mode: Mode) -> None:
    """Answers are awaited before the stream is ended, so its decoder would keep the last reordered pictures."""
    with VideoUnits(path, codec) as video:
        if mode == "every" and video.is_reordered:
            raise InvalidRequestError(
                f"{path} reorders its pictures (B-frames), and --mode is every.",
                "video without reordering, where no picture may be left out",
                "Push its pictures with --codec jpeg, or use --mode latest.",
            )


def _pace(
    open_file: Callable[[], File],
    read: Callable[[File], Iterator[tuple[float | None, Image | bytes]]],
    fps: float | None,
    loops: int,
) -> Iterator[TimedPicture]:
    offset_s = 0.0
    for _ in range(loops):
        with open_file() as video:
            step_s = 1 / (fps or float(video.average_rate or _RATE_WHEN_UNKNOWN))
            first_s: float | None = None
            due_s = offset_s - step_s
            for at_s, item in read(video):
                if fps is None and at_s is not None:
                    first_s = at_s if first_s is None else first_s
                    due_s = offset_s + at_s - first_s
                else:
                    due_s += step_s
                yield due_s, item
            offset_s = due_s + step_s


def _mask_writer(out: Path) -> Callable[[MaskMessage], None]:
    make_folder(out)

    def write(message: MaskMessage) -> None:
        suffix = "png" if message.mask == "png" else "json"
        write_whole(out / f"{message.sequence:06d}.{suffix}", message.data)

    return write


def _show_progress(report: PushReport) -> None:
    if sys.stderr.isatty():
        print("\r" + report.line(), end="", file=sys.stderr, flush=True)
    else:
        print(report.line(), file=sys.stderr, flush=True)


def _read_until(stream: MaskStream, due_at: float, take: Callable[[MaskMessage], None]) -> None:
    """Read what has come, and go on reading until it is `due_at`."""
    for message in stream.arrived():
        take(message)
    while (left_s := due_at - time.monotonic()) > 0:
        late = stream.receive(timeout_s=left_s)
        if late is not None:
            take(late)
        elif (left_s := due_at - time.monotonic()) > 0:
            time.sleep(left_s)  # the stream has ended, which the next push will say
