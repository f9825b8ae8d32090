"""The expendable process that touches bitstreams from strangers; the nursery forks it.

It is born empty and waits for its job on a socket to the service. One thread reads what comes, so
that what arrives is timed when it arrives; the main thread decodes, fits and hands over. It may crash, hang or be
killed at any moment: nothing is lost but the frames it held.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import cast

import av
from av.codec.context import CodecContext, ThreadType
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from service.contract.model_card import InputSize
from service.contract.video import describe_av_error, fit_frame
from service.frames import DropReason
from service.streams.backlog import Backlog, Unit
from service.streams.canvases import Canvases
from service.streams.decoder_messages import (
    ENDED,
    FAILED,
    JOB,
    RELEASE,
    TAKEN,
    UNIT,
    DropMessage,
    Event,
    FrameMessage,
    Job,
    unpack_release,
    unpack_unit,
)

_PR_SET_PDEATHSIG = 1
_MOST_REORDERED = (
    32  # frames that a stream may hold back: no profile allows more than 16, and fields count twice
)


class Decoder:
    """One job from its message to its end. Made and run in the child's main thread."""

    def __init__(self, connection: Connection, canvases: Canvases, job: Job) -> None:
        self._connection = connection
        self._canvases = canvases
        self._job = job
        self._size = InputSize(height=job.input_height, width=job.input_width)
        self._backlog = Backlog(job.behind_s)
        self._changed = threading.Condition()
        self._free = set(range(canvases.count))
        self._reformatter = VideoReformatter()
        self._used_s = time.process_time()

    def listen(self) -> None:
        """Take what the service sends, in a thread of its own; its silence ends the process."""
        try:
            while True:
                message = self._connection.recv_bytes()
                with self._changed:
                    if message[:1] == UNIT:
                        sequence, arrived_at, is_key, data = unpack_unit(message)
                        self._backlog.add(Unit(sequence, arrived_at, is_key, data))
                    elif message[:1] == RELEASE:
                        self._free.add(unpack_release(message))
                    self._changed.notify()
        except (EOFError, OSError):
            os._exit(0)

    def run(self) -> None:
        """Decode the units that come, until the process is ended."""
        context = open_codec(self._job.codec)
        arrivals: dict[int, float] = {}
        while True:
            unit = self._take()
            arrivals[unit.sequence] = unit.arrived_at
            packet = Packet(unit.payload)
            packet.pts = unit.sequence
            try:
                frames: Iterable[VideoFrame] = context.decode(packet)
            except av.error.FFmpegError:
                frames = []
                self._drop(DropReason.UNDECODABLE, [unit.sequence] if arrivals.pop(unit.sequence, 0) else [])
            self._say(Event(TAKEN, {"sequence": unit.sequence}))
            for frame in frames:
                arrived_at = arrivals.pop(frame.pts or 0, None)
                if arrived_at is not None:  # a unit that held two pictures is answered by its first
                    self._hand_over(frame, frame.pts or 0, arrived_at, None)
            lost = [sequence for sequence in arrivals if sequence < unit.sequence - _MOST_REORDERED]
            for sequence in lost:
                del arrivals[sequence]
            self._drop(DropReason.UNDECODABLE, lost)

    def _take(self) -> Unit:
        """The next unit to decode; waits for it."""
        with self._changed:
            while True:
                unit, given_up = self._backlog.take(time.monotonic())
                self._drop(DropReason.BEHIND, [unit.sequence for unit in given_up])
                if unit is not None:
                    return unit
                self._changed.wait()

    def _hand_over(self, frame: VideoFrame, sequence: int, arrived_at: float, pts_s: float | None) -> None:
        """Fit a decoded frame into a free slot and tell the service, or drop it with its cause."""
        decoded_at = time.monotonic()
        if frame.is_corrupt:
            self._drop(DropReason.UNDECODABLE, [sequence])
            return
        self._check_size(frame)
        slot = self._find_slot(arrived_at, decoded_at)
        if slot is None:
            self._drop(DropReason.SUPERSEDED, [sequence])
            return
        canvas_hwc = self._canvases.begin(slot)
        fit = fit_frame(frame, self._size, self._job.fit, canvas_hwc, self._reformatter)
        generation = self._canvases.finish(slot)
        used_s = time.process_time()
        self._say(
            FrameMessage(
                sequence,
                slot,
                generation,
                fit.source_width,
                fit.source_height,
                pts_s,
                arrived_at,
                decoded_at,
                time.monotonic(),
                used_s - self._used_s,
            )
        )
        self._used_s = used_s

    def _find_slot(self, arrived_at: float, now: float) -> int | None:
        """A slot to fill. A live frame that is late does not get one; other frames wait for it."""
        with self._changed:
            if self._job.behind_s is None:
                self._changed.wait_for(lambda: self._free)
            if not self._free or self._backlog.has_newer(arrived_at, now):
                return None
            return self._free.pop()

    def _check_size(self, frame: VideoFrame) -> None:
        if frame.width * frame.height > self._job.max_pixels:
            raise ValueError(
                f"Its pictures are {frame.width} x {frame.height}, and {self._job.max_pixels} pixels are allowed."
            )

    def _drop(self, reason: DropReason, sequences: list[int]) -> None:
        if sequences:
            self._say(DropMessage(reason, tuple(sequences)))

    def _say(self, message: FrameMessage | DropMessage | Event) -> None:
        self._connection.send_bytes(message.pack())


def open_codec(codec: str) -> VideoCodecContext:
    """A decoder that gives each picture as soon as the bitstream allows: threads share a picture, not a sequence."""
    context = cast(VideoCodecContext, CodecContext.create(codec, "r"))
    context.thread_type = ThreadType.SLICE
    return context


def main(parent: int, connection_fd: int, memory_fd: int) -> None:
    """Wait for the job and do it, in a process that `parent` forked. Gives up when the service does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could take us with it
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(connection_fd)
    try:
        message = connection.recv_bytes()
    except (EOFError, OSError):
        return
    if message[:1] != JOB:
        return
    job = Job.unpack(message)
    _limit_memory(job.memory_bytes)
    size = InputSize(height=job.input_height, width=job.input_width)
    decoder = Decoder(connection, Canvases(memory_fd, job.slots, size), job)
    threading.Thread(target=decoder.listen, daemon=True).start()
    try:
        decoder.run()
        connection.send_bytes(Event(ENDED, {}).pack())
    except (av.error.FFmpegError, MemoryError, ValueError) as error:
        found = "It needs more memory than it may have." if isinstance(error, MemoryError) else str(error)
        if isinstance(error, av.error.FFmpegError):
            found = f"FFmpeg cannot go on ({describe_av_error(error)})."
        connection.send_bytes(Event(FAILED, {"found": found}).pack())


def _limit_memory(allowed_bytes: int) -> None:
    """From now on the process may allocate `allowed_bytes` more than it holds."""
    pages = int(open("/proc/self/statm", encoding="ascii").read().split()[0])  # noqa: SIM115, PTH123 - one read
    limit = pages * resource.getpagesize() + allowed_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
