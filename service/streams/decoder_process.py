"""Decoder processes as the service sees them: started ahead of need, spoken to, killed and buried."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

from service.contract.geometry import Image
from service.contract.model_card import InputSize
from service.errors import UnavailableError
from service.streams.canvases import Canvases, create_memory
from service.streams.decoder_messages import (
    DropMessage,
    Event,
    FrameMessage,
    Job,
    pack_release,
    unpack_from_decoder,
)

_SOCKET_BYTES = 4 * 2**20  # so that a burst of large key frames does not stop the sender
_START_TIMEOUT_S = 20.0
_BURIAL_S = 5.0


class DecoderProcess:
    """One child. One thread sends, one receives, any may kill; after `kill` both of them get EOFError or OSError."""

    def __init__(self) -> None:
        """Start the child; it waits for its job. Raises OSError."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        self._memory_fd = create_memory()
        with theirs:
            passed = (theirs.fileno(), self._memory_fd)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.streams.decoder", *map(str, passed)],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())
        self._canvases: Canvases | None = None
        self._lock = threading.Lock()
        self._is_buried = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, job: Job) -> None:
        """Give the child its job."""
        size = InputSize(height=job.input_height, width=job.input_width)
        self._canvases = Canvases(self._memory_fd, job.slots, size)
        self._connection.send_bytes(job.pack())

    def send(self, message: bytes) -> None:
        """Send one message; waits while the child does not read."""
        self._connection.send_bytes(message)

    def receive(self, timeout_s: float) -> FrameMessage | DropMessage | Event | None:
        """What the child says next; None when it says nothing in time.

        Raises EOFError or OSError when it is gone, ValueError when it says what no sound decoder says.
        """
        if not self._connection.poll(timeout_s):
            return None
        return unpack_from_decoder(self._connection.recv_bytes())

    def take(self, message: FrameMessage) -> Image | None:
        """A copy of the picture that a message tells of; None where its slot holds another one by now."""
        assert self._canvases is not None
        return self._canvases.copy(message.slot, message.generation)

    def release(self, slot: int) -> None:
        """Let the child fill the slot again."""
        self._connection.send_bytes(pack_release(slot))

    def kill(self) -> None:
        """End the child at once, whatever it does; twice does nothing."""
        if self._process.poll() is None:
            self._process.kill()

    def bury(self) -> str:
        """Kill, wait for the end, free everything; gives how it ended, in words. Not while another thread uses it."""
        with self._lock:
            if not self._is_buried:
                self._is_buried = True
                ended = _wait_briefly(self._process)
                self._process.kill()
                self._process.wait(_BURIAL_S)
                self._connection.close()
                os.close(self._memory_fd)
                self._canvases = None
                self._ended = ended
            return self._ended


class DecoderPool:
    """Keeps one started decoder ahead of need, because starting one takes half a second.

    All children are started by one thread that lives as long as the pool: the kernel ends them with that thread, so
    that none outlives the service, however it ends.
    """

    def __init__(self) -> None:
        self._spares: queue.Queue[DecoderProcess | None] = queue.Queue()
        self._wanted = threading.Semaphore(1)
        self._is_closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the first spare. Any thread; again does nothing."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="surgseg-decoders", daemon=True)
                self._thread.start()

    def take(self) -> DecoderProcess:
        """A started decoder, and have the next one started. Raises UnavailableError."""
        self.start()
        self._wanted.release()
        try:
            decoder = self._spares.get(timeout=_START_TIMEOUT_S)
        except queue.Empty:
            decoder = None
        if decoder is None or self._is_closed:
            raise UnavailableError(
                "No decoder process can be started.",
                "a machine with memory for one more process",
                "Look at the service's log, close streams, and try again.",
            )
        return decoder

    def close(self) -> None:
        """End the spares, and the thread; streams must be closed before."""
        self._is_closed = True
        self._wanted.release()
        if self._thread is not None:
            self._thread.join(_BURIAL_S)
        while not self._spares.empty():
            if (spare := self._spares.get()) is not None:
                spare.bury()

    def _work(self) -> None:
        while True:
            self._wanted.acquire()
            if self._is_closed:
                return
            try:
                self._spares.put(DecoderProcess())
            except OSError:
                self._spares.put(None)


def _wait_briefly(process: subprocess.Popen[bytes]) -> str:
    """How a child whose socket has closed has ended; one that has not is about to be killed by us."""
    try:
        code = process.wait(0.2)
    except subprocess.TimeoutExpired:
        return "it was ended"
    if code >= 0:
        return f"it ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"it was ended by {name}"
