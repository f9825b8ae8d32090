"""The life of a decoder process, from the fork to its end: what it may use, its job, and what it says when it fails."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
from multiprocessing.connection import Connection

import av

from service.contract.model_card import InputSize
from service.contract.video import describe_av_error
from service.errors import StreamError
from service.streams.canvases import Canvases
from service.streams.decoder import Decoder
from service.streams.decoder_messages import ENDED, FAILED, JOB, Event, Job

_NICENESS = 10  # frames that are decoded go first where the processor is short: more would only be superseded
_STACK_BYTES = (
    2 * 2**20
)  # of each thread: Linux's own 8 MiB would count against the memory that a decoder may have
_PR_SET_PDEATHSIG = 1


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
    threading.stack_size(_STACK_BYTES)
    _limit_memory(job.memory_bytes)
    size = InputSize(height=job.input_height, width=job.input_width)
    decoder = Decoder(connection, Canvases(memory_fd, job.slots, size), job)
    threading.Thread(target=decoder.listen, daemon=True).start()
    try:
        decoder.run()
        connection.send_bytes(Event(ENDED, {}).pack())
    except (av.error.FFmpegError, MemoryError, RuntimeError, ValueError, StreamError) as error:
        # what is in a file does not change, so what it cannot do now it will never do
        failed = Event(FAILED, {"found": _explain(error), "is_final": job.is_file})
        connection.send_bytes(failed.pack())


def _explain(error: Exception) -> str:
    if isinstance(error, StreamError):
        return error.found
    if isinstance(error, MemoryError | RuntimeError):  # the latter where there is no room for a thread
        return "It needs more memory than it may have."
    if isinstance(error, av.error.FFmpegError):
        return f"FFmpeg cannot go on ({describe_av_error(error)})."
    return str(error)


def _limit_memory(allowed_bytes: int) -> None:
    """From now on the process may allocate `allowed_bytes` more than it holds."""
    pages = int(open("/proc/self/statm", encoding="ascii").read().split()[0])  # noqa: SIM115, PTH123 - one read
    limit = pages * resource.getpagesize() + allowed_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
