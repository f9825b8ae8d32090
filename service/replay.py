"""`surgseg replay`: what an audit record says, in figures, or drawn over the video again."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from service.audit.entries import DropEntry, MaskEntry
from service.audit.matching import Matching, NumberMatching, TimeMatching
from service.audit.record import Fault, Record
from service.audit.summary import StreamSummary, Summary
from service.contract.geometry import Image, enlarge_mask
from service.contract.model_card import ClassInfo
from service.contract.video import find_video, open_video_file
from service.errors import DataError, InvalidRequestError, StreamError
from service.output_files import check_outputs, make_folder
from service.overlay import draw_overlay
from service.push import format_table, summarize
from service.recording import VideoWriter
from service.streams.video import VideoFile
from service.wire import VIDEO_CODECS

_RATE_WHEN_UNKNOWN = Fraction(25)
_ROWS_PER_LETTER_SIZE = 720
_MOST_PROBLEMS_SHOWN = 20
_DRAWN = "drawn"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `surgseg replay`."""
    parser.add_argument(
        "record", type=Path, metavar="RECORD", help="folder of SURGSEG_AUDIT, or a file of it"
    )
    parser.add_argument("--video", type=Path, metavar="FILE", help="the video whose frames were segmented")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="the video to write, mp4")
    parser.add_argument("--stream", metavar="ID", help="one stream, as ID or RUN/ID (all, or the only one)")
    parser.add_argument("--shift", type=float, metavar="SECONDS",
                        help="from the record's times to the video's; then the nearest frame counts")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Read a record. 0 when it is sound, 1 when something in it is damaged or missing; raises SurgsegError."""
    record = Record(arguments.record)
    if (arguments.video is None) != (arguments.out is None) or (arguments.shift and not arguments.video):
        raise InvalidRequestError(
            "One of --video and --out is missing.", "both, or neither", "Name the video and where to draw it."
        )
    summary = Summary()
    for run_name, entry in tqdm(record.entries(), unit="entry", disable=None, leave=False):
        summary.add(run_name, entry)
    if arguments.video is None:
        print(format_summary(record, summary, arguments.stream))
    else:
        stream = _choose_stream(summary, arguments.stream)
        print(draw_record(record, summary, stream, arguments.video, arguments.out, arguments.shift))
        _warn(record)
    return int(any(problem.fault is not Fault.CUT for problem in record.problems))


def format_summary(record: Record, summary: Summary, name: str | None) -> str:
    """A record in figures, for a terminal; only the stream `name`, unless None."""
    lines = [
        f"{record.files} files, {record.blocks} blocks, {record.lost} entries lost when they were to be written"
    ]
    lines += [f"! {problem}" for problem in record.problems[:_MOST_PROBLEMS_SHOWN]]
    left_out = len(record.problems) - _MOST_PROBLEMS_SHOWN
    lines += [f"! and {left_out} problems more"] if left_out > 0 else []
    for stream in summary.find(name):
        lines += ["", *_describe(stream, summary)]
    return "\n".join(lines)


def draw_record(
    record: Record, summary: Summary, stream: StreamSummary, video: Path, out: Path, shift_s: float | None
) -> str:
    """Write `video` with the stream's masks drawn over it, or why there is none; gives a line that says how it went.

    Raises DataError where the video cannot be the one that was segmented, and StreamError where it cannot be read.
    """
    check_outputs([video], [out])
    make_folder(out.parent)
    endings = [
        entry
        for run_name, entry in record.entries()
        if run_name == stream.run
        and isinstance(entry, MaskEntry | DropEntry)
        and entry.stream == stream.stream
    ]
    counts: Counter[str] = Counter()
    with VideoFile(video) as file, VideoWriter(out, file.average_rate or _RATE_WHEN_UNKNOWN) as writer:
        matching = _plan_matching(stream, endings, video, file.average_rate, shift_s)
        damage = _draw_frames(file, writer, matching, summary, counts)
        if not counts[_DRAWN]:
            raise DataError(
                f"No frame of {video} is in the record of {stream.key}.",
                "the video whose frames were segmented",
                "Name that video; where its times begin elsewhere, say by how much with --shift.",
            )
    rest = "".join(f", {count} {reason}" for reason, count in counts.items() if reason != _DRAWN)
    return f"{stream.key}: {counts[_DRAWN]} of {stream.masks} masks drawn{rest} -> {out}{damage}"


def _draw_frames(
    file: VideoFile, writer: VideoWriter, matching: Matching, summary: Summary, counts: Counter[str]
) -> str:
    """Draw every frame that can be decoded, and count them by what was found; gives what is wrong with the video."""
    try:
        for number, frame in enumerate(tqdm(file.frames(), unit="frame", disable=None), start=1):
            found = matching.find(number, frame.pts_s)
            if isinstance(found, MaskEntry):
                image_hwc = draw_entry(frame.image_hwc, found, _find_classes(summary, found))
            else:
                image_hwc = draw_reason(frame.image_hwc, found)
            counts[_DRAWN if isinstance(found, MaskEntry) else found] += 1
            writer.write(image_hwc, frame.pts_s)
    except StreamError as error:
        if not counts:
            raise
        return f"\n! {error.found}"
    return ""


def draw_entry(image_hwc: Image, entry: MaskEntry, classes: tuple[ClassInfo, ...]) -> Image:
    """A copy of the picture with a recorded mask drawn over it, as `surgseg segment` draws it. Raises DataError."""
    height, width = image_hwc.shape[:2]
    if (entry.width, entry.height) != (width, height):
        raise DataError(
            f"The video's frames are {width} x {height}, frame {entry.sequence} of the record {entry.width} x "
            f"{entry.height}.",
            "the video whose frames were segmented",
            "Name that video, or another stream with --stream.",
        )
    try:
        return draw_overlay(image_hwc, enlarge_mask(entry.mask_hw, height, width), classes)
    except ValueError as error:
        raise DataError(
            f"The mask of frame {entry.sequence} cannot be drawn: {error}.", "a mask of its model's classes",
            "Check the record with `surgseg replay RECORD`.",
        ) from error  # fmt: skip


def draw_reason(image_hwc: Image, reason: str) -> Image:
    """A copy of the picture that says why it has no mask."""
    drawn_hwc = image_hwc.copy()
    scale = max(0.4, image_hwc.shape[0] / _ROWS_PER_LETTER_SIZE)
    place = (round(12 * scale), round(32 * scale))
    for colour, thickness in (((0, 0, 0), 4), ((255, 220, 0), 1)):  # an outline, to be read on any picture
        cv2.putText(drawn_hwc, reason, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour,
                    max(1, round(thickness * scale)), cv2.LINE_AA)  # fmt: skip
    return np.asarray(drawn_hwc, dtype=np.uint8)


def _plan_matching(
    stream: StreamSummary,
    endings: list[MaskEntry | DropEntry],
    video: Path,
    rate: Fraction | None,
    shift_s: float | None,
) -> Matching:
    """By time where the record has it; else by number, that of the access unit where the stream was a bitstream."""
    has_times = any(ending.pts_s is not None for ending in endings)
    codec = stream.opened.codec if stream.opened else ""
    if not has_times and codec not in VIDEO_CODECS:
        if shift_s is not None:
            raise InvalidRequestError(
                "The record has no times to shift.",
                "no --shift",
                "Its frames are counted: leave --shift out.",
            )
        return NumberMatching(endings)
    times_s = [] if has_times else _read_times(video)
    if shift_s is None:
        return TimeMatching(endings, times_s=times_s)
    return TimeMatching(
        endings, times_s=times_s, shift_s=shift_s, tolerance_s=float(1 / (rate or _RATE_WHEN_UNKNOWN)) / 2
    )


def _read_times(video: Path) -> list[float | None]:
    """When each access unit of a file is shown, in the order in which a client pushes them: that of decoding."""
    with open_video_file(video) as container:
        stream = find_video(container, str(video))
        packets = [packet for packet in container.demux(stream) if packet.size]
        times_s = [None if one.pts is None else float(one.pts * one.time_base) for one in packets]
    if None in times_s:
        raise DataError(
            f"{video} does not say when its frames are shown.",
            "a container with presentation times",
            f"Put it into one: ffmpeg -i {video.name} -c copy copy.mp4",
        )
    return times_s


def _choose_stream(summary: Summary, name: str | None) -> StreamSummary:
    candidates = [stream for stream in summary.find(name) if stream.masks]
    if len(candidates) == 1:
        return candidates[0]
    known = ", ".join(stream.key for stream in summary.find(None) if stream.masks) or "the record has none"
    named = "" if name is None else f" called {name!r}"
    raise DataError(
        f"The record has {len(candidates)} streams{named} with masks.",
        "one stream to draw",
        f"Name one with --stream: {known}.",
    )


def _find_classes(summary: Summary, entry: MaskEntry) -> tuple[ClassInfo, ...]:
    model = summary.models.get(entry.model)
    if model is None:
        raise DataError(
            f"The record does not describe the model {entry.model[:12]} of frame {entry.sequence}.",
            "the entry `model`, which every file begins with",
            "Read the whole folder, not one file.",
        )
    return model.classes


def _describe(stream: StreamSummary, summary: Summary) -> list[str]:
    opened = stream.opened
    about = f", {opened.origin}, {opened.codec or 'codec unknown'}, {opened.mode}" if opened else ""
    name = f" {opened.name!r}" if opened and opened.name else ""
    drops = "".join(f", {count} {reason}" for reason, count in stream.dropped.most_common())
    end = "closed" if stream.closed else "not closed in this record"
    lines = [
        f"{stream.key}{name}{about}",
        f"  {stream.began_at:%Y-%m-%d %H:%M:%S} to {stream.ended_at:%Y-%m-%d %H:%M:%S} UTC, {end}",
        f"  frames {stream.first} to {stream.last}: {stream.masks} masks{drops}, {stream.missing} missing",
        *(f"  {count} masks by {summary.name_model(model)}" for model, count in stream.models.items()),
    ]
    if stream.masks:
        rows = {**stream.stages_ms, "arrival to mask": stream.total_ms}
        table = format_table({stage: summarize(values) for stage, values in rows.items()})
        lines += [f"  {line}" for line in table.splitlines()]
    return lines


def _warn(record: Record) -> None:
    for problem in record.problems[:_MOST_PROBLEMS_SHOWN]:
        print(f"! {problem}", file=sys.stderr)
