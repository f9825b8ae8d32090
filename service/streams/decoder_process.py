"""Decoder processes as the service sees them: asked for, spoken to, killed and buried."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from service.contract.geometry import Image
from service.contract.model_card import InputSize
from service.errors import UnavailableError
from service.processes import Usage, measure_tree
from service.streams.canvases import Canvases, create_memory
from service.streams.decoder_messages import (
    DropMessage,
    Event,
    FrameMessage,
    Job,
    pack_release,
    unpack_from_decoder,
)
from service.streams.nursery import BORN, LIFE, REQUEST

_SOCKET_BYTES = 4 * 2**20  # so that a burst of large key frames does not stop the sender
_BIRTH_TIMEOUT_S = 20.0
_BURIAL_S = 5.0
_LAST_WORD_S = 0.2


class DecoderProcess:
    """One child. One thread sends, one receives, any may kill; then both of them get EOFError or OSError.

    `life` is a pidfd: it names this process and no other, also after its number has been given to another.
    `learn_status` waits a moment for what the nursery says of its end.
    """

    def __init__(
        self,
        pid: int,
        life: int,
        connection: Connection,
        memory_fd: int,
        learn_status: Callable[[int], int | None],
    ) -> None:
        self.pid = pid
        self._life = life
        self._connection = connection
        self._memory_fd = memory_fd
        self._learn_status = learn_status
        self._canvases: Canvases | None = None
        self._lock = threading.Lock()
        self._end: str | None = None

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
        with self._lock:
            if self._end is None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._life, signal.SIGKILL)

    def bury(self) -> str:
        """See the child's end, kill it if there is none, and free everything; gives how it ended, in words.

        Not while another thread still sends or receives.
        """
        with self._lock:
            if self._end is None:
                if not _has_ended(self._life, _LAST_WORD_S):
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(self._life, signal.SIGKILL)
                    _has_ended(self._life, _BURIAL_S)
                self._end = _describe_end(self._learn_status(self.pid))
                self._connection.close()
                os.close(self._life)
                os.close(self._memory_fd)
                self._canvases = None
            return self._end


class DecoderPool:
    """The service's side of the nursery, which is started ahead of need and started again if it is lost.

    Any thread may call any method.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._nursery: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._births: queue.Queue[tuple[int, int] | None] = queue.Queue()
        self._ended = threading.Condition()
        self._statuses: dict[int, int] = {}

    def start(self) -> None:
        """Start the nursery, which then takes half a second to be ready; again does nothing. Raises OSError."""
        with self._lock:
            self._start()

    def take(self) -> DecoderProcess:
        """A decoder that waits for its job. Raises UnavailableError."""
        with self._lock:
            for _ in range(2):  # a nursery that was lost is noticed by asking it
                try:
                    self._start()
                    return self._ask()
                except (OSError, EOFError):
                    self._lose_nursery()
        raise UnavailableError(
            "No decoder process can be started.",
            "a machine with memory for one more process",
            "Look at the service's log, close streams, and try again.",
        )

    def measure(self) -> Usage:
        """What the nursery and the decoders that are alive use."""
        nursery = self._nursery
        return measure_tree(None if nursery is None else nursery.pid)

    def close(self) -> None:
        """End the nursery, and with it every decoder that is left."""
        with self._lock:
            self._is_closed = True
            self._lose_nursery()

    def _start(self) -> None:
        if self._is_closed:
            raise OSError("the pool is closed")
        if self._nursery is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "service.streams.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._socket = ours
        self._births = queue.Queue()
        threading.Thread(
            target=self._listen, args=(ours, self._births), name="surgseg-nursery", daemon=True
        ).start()

    def _ask(self) -> DecoderProcess:
        assert self._socket is not None
        ours, theirs = socket.socketpair()
        memory_fd = create_memory()
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            socket.send_fds(self._socket, [REQUEST], [theirs.fileno(), memory_fd])
            born = self._births.get(timeout=_BIRTH_TIMEOUT_S)
            if born is None:
                raise EOFError
        except (OSError, EOFError, queue.Empty) as error:
            ours.close()
            os.close(memory_fd)
            raise EOFError from error
        finally:
            theirs.close()
        pid, life = born
        return DecoderProcess(pid, life, Connection(ours.detach()), memory_fd, self._learn_status)

    def _lose_nursery(self) -> None:
        if self._nursery is None or self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._nursery.kill()
        self._nursery.wait(_BURIAL_S)
        self._nursery = self._socket = None

    def _listen(self, nursery: socket.socket, births: queue.Queue[tuple[int, int] | None]) -> None:
        """Hear of births and deaths until the nursery is gone; in a thread of its own."""
        with nursery:
            while True:
                try:
                    message, descriptors, _, _ = socket.recv_fds(nursery, LIFE.size, 1)
                except OSError:
                    message = b""
                if len(message) != LIFE.size:
                    births.put(None)
                    return
                event, pid, status = LIFE.unpack(message)
                if event == BORN:
                    births.put((pid, descriptors[0]))
                    continue
                with self._ended:
                    self._statuses[pid] = status
                    self._ended.notify_all()

    def _learn_status(self, pid: int) -> int | None:
        with self._ended:
            self._ended.wait_for(lambda: pid in self._statuses, _LAST_WORD_S)
            return self._statuses.pop(pid, None)


def _has_ended(life: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(life, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _describe_end(status: int | None) -> str:
    if status is None:
        return "it was ended"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"it ended with code {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"
