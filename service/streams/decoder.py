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
from multiprocessing.connection import Connection
from typing import Any, cast

import av
from av.codec.context import CodecContext, ThreadType
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from service.contract.model_card import InputSize
from service.contract.video import describe_av_error, fit_frame
from service.errors import StreamError
from service.frames import DropReason
from service.streams.backlog import Backlog, Unit
from service.streams.canvases import Canvases
from service.streams.decoder_messages import (
    ENDED,
    FAILED,
    JOB,
    LAST,
    OPENED,
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
from service.streams.decoder_sources import PulledSource, open_source

_NICENESS = 10  # frames that are decoded go first where the processor is short: more would only be superseded
_PR_SET_PDEATHSIG = 1
_MOST_WAITING = 16  # packets of a file that lie ready for the decoder
_LONGEST_SILENCE_S = 1.0
_MOST_REORDERED = 32  # frames held back: no profile allows more than 16, and fields count twice


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
        self._pulled = 0  # units read from a source that the decoder opened itself
        self._is_over = False  # no more units come
        self._failure: Exception | None = None
        self._waits_for_key: DropReason | None = None
        self._known = job.skip

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
                    self._is_over |= message[:1] == LAST
                    self._changed.notify_all()
        except (EOFError, OSError):
            os._exit(0)

    def run(self) -> None:
        """Do the job until the process is ended or the source is at its end. Raises what makes it impossible."""
        if self._job.codec:
            self._decode_all(open_codec(self._job.codec))
            return
        while True:
            with open_source(self._job) as source:
                self._say(Event(OPENED, {"codec": source.codec}))
                self._play(source)
            if not self._job.is_looped:
                return

    def _play(self, source: PulledSource) -> None:
        """Read a source to its end in one thread, and decode in this one."""
        self._is_over, self._failure = False, None
        self._waits_for_key = None if self._job.is_file else DropReason.AWAITING_KEY
        before = self._pulled
        reader = threading.Thread(target=self._read, args=(source,), daemon=True)
        reader.start()
        self._decode_all(source.context)
        reader.join()
        if self._failure is not None:
            raise self._failure
        if self._pulled == before:
            raise ValueError("There is no picture in it.")

    def _read(self, source: PulledSource) -> None:
        """Queue what the source gives, timed as it comes; a file waits until what was queued is decoded."""
        try:
            for packet, pts_s in source.packets():
                with self._changed:
                    if self._job.is_file:
                        self._changed.wait_for(lambda: len(self._backlog) < _MOST_WAITING)
                    self._pulled += 1
                    payload = packet, pts_s
                    self._backlog.add(Unit(self._pulled, time.monotonic(), packet.is_keyframe, payload))
                    self._changed.notify_all()
        except (av.error.FFmpegError, MemoryError) as error:
            self._failure = error
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _decode_all(self, context: VideoCodecContext) -> None:
        """Decode the units that come, to the end of the source."""
        arrivals: dict[int, tuple[float, float | None]] = {}
        while (unit := self._take()) is not None:
            if self._waits_for_key is not None and not unit.is_key:
                self._drop(self._waits_for_key, [unit.sequence])
                continue
            self._waits_for_key = None
            packet, pts_s = (Packet(unit.payload), None) if self._job.codec else unit.payload
            packet.pts, packet.dts = unit.sequence, None
            if not packet.is_discard:  # a file's own word that the picture is not to be shown
                arrivals[unit.sequence] = unit.arrived_at, pts_s
            is_intact = self._decode(context, packet, unit.sequence, arrivals)
            self._say(Event(TAKEN, {"sequence": unit.sequence}))
            if not is_intact and self._job.is_file:
                context.flush_buffers()  # what follows refers to what is lost, as in decode_intact
                self._waits_for_key = DropReason.UNDECODABLE
            lost = [sequence for sequence in arrivals if sequence < unit.sequence - _MOST_REORDERED]
            for sequence in lost:
                del arrivals[sequence]
            self._drop(DropReason.UNDECODABLE, lost)
        self._decode(context, None, 0, arrivals)
        self._drop(DropReason.UNDECODABLE, list(arrivals))

    def _decode(
        self,
        context: VideoCodecContext,
        packet: Packet[Any] | None,
        sequence: int,
        arrivals: dict[int, tuple[float, float | None]],
    ) -> bool:
        """Hand over the pictures that a packet sets free; None: all that are left. False when there was damage."""
        try:
            frames: list[VideoFrame] = context.decode(packet)
        except av.error.FFmpegError:
            self._drop(DropReason.UNDECODABLE, [sequence] if arrivals.pop(sequence, None) else [])
            return False
        for frame in frames:
            arrival = arrivals.pop(frame.pts or 0, None)
            if arrival is not None:  # a unit that held two pictures is answered by its first
                self._hand_over(frame, frame.pts or 0, *arrival)
        return not any(frame.is_corrupt for frame in frames)

    def _take(self) -> Unit | None:
        """The next unit to decode; waits for it. None at the end of a source, or of what is pushed."""
        with self._changed:
            while True:
                unit, given_up = self._backlog.take(time.monotonic())
                self._drop(DropReason.BEHIND, [unit.sequence for unit in given_up])
                if unit is not None or self._is_over:
                    self._changed.notify_all()
                    return unit
                if not self._changed.wait(_LONGEST_SILENCE_S) and self._job.is_paced:
                    self._say(Event(TAKEN, {}))  # the next picture is not due yet

    def _hand_over(self, frame: VideoFrame, sequence: int, arrived_at: float, pts_s: float | None) -> None:
        """Fit a decoded frame into a free slot and tell the service, or drop it with its cause."""
        decoded_at = time.monotonic()
        if self._known:
            self._known -= 1
            return
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
            if not self._free or self._backlog.is_stale(arrived_at, now):
                return None
            return self._free.pop()

    def _check_size(self, frame: VideoFrame) -> None:
        if frame.width * frame.height > self._job.max_pixels:
            raise ValueError(
                f"Its pictures are {frame.width} x {frame.height}, and {self._job.max_pixels} pixels are allowed."
            )

    def _drop(self, reason: DropReason, sequences: list[int]) -> None:
        known = min(self._known, len(sequences))
        self._known -= known
        sequences = sequences[known:]
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
    os.nice(_NICENESS)
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
    except (av.error.FFmpegError, MemoryError, ValueError, StreamError) as error:
        # what is in a file does not change, so what it cannot do now it will never do
        failed = Event(FAILED, {"found": _explain(error), "is_final": job.is_file})
        connection.send_bytes(failed.pack())


def _explain(error: Exception) -> str:
    if isinstance(error, StreamError):
        return error.found
    if isinstance(error, MemoryError):
        return "It needs more memory than it may have."
    if isinstance(error, av.error.FFmpegError):
        return f"FFmpeg cannot go on ({describe_av_error(error)})."
    return str(error)


def _limit_memory(allowed_bytes: int) -> None:
    """From now on the process may allocate `allowed_bytes` more than it holds."""
    pages = int(open("/proc/self/statm", encoding="ascii").read().split()[0])  # noqa: SIM115, PTH123 - one read
    limit = pages * resource.getpagesize() + allowed_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
