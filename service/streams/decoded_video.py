"""A stream whose pictures come out of a decoder process: what pushed bitstreams and pulled streams have in common."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

from service.contract.geometry import plan_fit
from service.contract.model_card import InputSize
from service.errors import StreamError, UnavailableError
from service.frames import DecoderLoss, FittedFrame
from service.streams.decoder_messages import (
    ENDED,
    FAILED,
    DropMessage,
    Event,
    FrameMessage,
    Job,
    pack_release,
)
from service.streams.decoder_process import DecoderPool, DecoderProcess
from service.streams.restarts import Restarts

_LOOK_UP_S = 0.25  # how often a silent decoder is looked after
_JOIN_S = 2.0


class StreamState(StrEnum):
    """What a stream is doing."""

    STARTING = "starting"
    RUNNING = "running"
    STALLED = "stalled"
    """Its source has sent nothing for a while."""
    RESTARTING = "restarting"
    """Its decoder or its source was lost; the next attempt is due."""
    ENDED = "ended"
    """Its source was a file and is at its end."""
    FAILED = "failed"
    """It cannot go on; the reason says why."""


class DecoderLostError(Exception):
    """A decoder is of no use any more; `reason` says why, in words."""

    def __init__(self, reason: str, loss: DecoderLoss) -> None:
        super().__init__(reason)
        self.loss = loss


class DecodedVideo(ABC):
    """A FrameSource behind a decoder process that is started again when it is lost.

    `on_state(state, reason)` is told of every change, `on_restart(loss)` whenever another decoder is to be started;
    both are called in the reader's thread. Subclasses say what a message means for their frames.
    """

    def __init__(
        self,
        pool: DecoderPool,
        job: Job,
        *,
        restarts: Restarts,
        on_state: Callable[[StreamState, str], None],
        on_restart: Callable[[DecoderLoss], None],
    ) -> None:
        self._pool = pool
        self._job = job
        self._size = InputSize(height=job.input_height, width=job.input_width)
        self._restarts = restarts
        self._is_patient = False
        self._shown_at = 0.0  # when the last picture came
        self._on_state = on_state
        self._on_restart = on_restart
        self._changed = threading.Condition()
        self._outbound: deque[bytes] = deque()
        self._outbound_bytes = 0
        self._decoder: DecoderProcess | None = None
        self._is_closed = False
        self.state = StreamState.STARTING
        self.reason = ""

    @property
    def decoder_pid(self) -> int | None:
        """The process that decodes now, if there is one."""
        decoder = self._decoder
        return None if decoder is None else decoder.pid

    def frames(self) -> Iterator[FittedFrame]:
        """See `FrameSource.frames`. Raises StreamError when the source cannot go on."""
        while not self._is_closed and not self._is_complete():
            started_at = time.monotonic()
            try:
                yield from self._decode()
                return
            except DecoderLostError as lost:
                reason, loss = str(lost), lost.loss
            if self._is_closed:
                return
            lived_s = max(0.0, self._shown_at - started_at)
            delay_s = self._restarts.fail(lived_s, is_patient=self._is_patient)
            if delay_s is None:
                raise StreamError(
                    f"The stream failed {self._restarts.failures} times in a row, the last time because {reason}.",
                    "a source that can be decoded",
                    "Check the source, then open the stream again.",
                )
            self._enter(StreamState.RESTARTING, reason)
            self._on_restart(loss)
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._is_complete(), delay_s)

    def close(self) -> None:
        """See `FrameSource.close`."""
        with self._changed:
            self._is_closed = True
            decoder = self._decoder
            self._changed.notify_all()
        if decoder is not None:
            decoder.kill()

    def _decode(self) -> Iterator[FittedFrame]:
        """The frames of one decoder. Raises DecoderLostError; ends when the source has ended or was closed."""
        try:
            decoder = self._pool.take()
        except UnavailableError as error:
            raise DecoderLostError(error.found.rstrip("."), DecoderLoss.ENDED) from error
        sender = threading.Thread(target=self._send, args=(decoder,), name="surgseg-sender", daemon=True)
        try:
            decoder.begin(self._plan_job())
            with self._changed:
                self._outbound.clear()
                self._outbound_bytes = 0
                self._decoder = decoder
                for message in self._first_messages():
                    self._put(message)
            sender.start()
            yield from self._receive(decoder)
        except (EOFError, OSError) as error:
            raise DecoderLostError(f"its decoder is gone: {decoder.bury()}", DecoderLoss.ENDED) from error
        finally:
            with self._changed:
                self._decoder = None
                self._changed.notify_all()
            decoder.kill()
            if sender.ident is not None:
                sender.join(_JOIN_S)
            decoder.bury()
            self._end()

    def _receive(self, decoder: DecoderProcess) -> Iterator[FittedFrame]:
        heard_at = time.monotonic()
        while not self._is_closed:
            try:
                message = decoder.receive(_LOOK_UP_S)
            except ValueError as error:
                raise DecoderLostError(str(error), DecoderLoss.ENDED) from error
            if message is None:
                self._watch(heard_at)
                continue
            if isinstance(message, FrameMessage):
                yield from self._take(decoder, message)
            elif isinstance(message, DropMessage):
                self._drop(message)
            elif message.kind == FAILED:
                self._fail(message)
            elif message.kind == ENDED:
                self._finish()
                return
            else:
                self._note(message)
            heard_at = time.monotonic()  # after the frame was taken over, which may have had to wait for room

    def _take(self, decoder: DecoderProcess, message: FrameMessage) -> Iterator[FittedFrame]:
        """Copy a frame out of its slot, give it, and only then free the slot: that holds a lossless decoder back."""
        canvas_hwc = decoder.take(message)
        if canvas_hwc is None:
            found = f"its decoder named slot {message.slot}, which does not hold that picture"
            raise DecoderLostError(found, DecoderLoss.ENDED)
        self._enter(StreamState.RUNNING, "")
        self._shown_at = now = time.monotonic()
        frame = self._identify(message)
        if frame is not None:
            sequence, captured_at_us, arrived_at = frame
            decoded_at = min(max(message.decoded_at, arrived_at), now)
            yield FittedFrame(
                canvas_hwc=canvas_hwc,
                fit=plan_fit(message.height, message.width, self._size, self._job.fit),
                pts_s=message.pts_s,
                sequence=sequence,
                captured_at_us=captured_at_us,
                arrived_at=arrived_at,
                decoded_at=decoded_at,
                prepared_at=min(max(message.prepared_at, decoded_at), now),
                cost_s=message.cost_s,
            )
        self._put(pack_release(message.slot))

    def _send(self, decoder: DecoderProcess) -> None:
        """Everything for the child goes through here, so that nobody else waits when it does not read."""
        try:
            while (message := self._next_outbound(decoder)) is not None:
                decoder.send(message)
        except OSError:
            pass  # it is gone, which the receiver notices

    def _next_outbound(self, decoder: DecoderProcess) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._outbound or self._decoder is not decoder)
            if self._decoder is not decoder:
                return None
            message = self._outbound.popleft()
            self._outbound_bytes -= len(message)
            return message

    def _put(self, message: bytes) -> None:
        """Have a message sent to the decoder that is there now; without one it is forgotten."""
        with self._changed:
            if self._decoder is None:
                return
            self._outbound.append(message)
            self._outbound_bytes += len(message)
            self._changed.notify_all()

    def _enter(self, state: StreamState, reason: str) -> None:
        if state is not self.state or reason != self.reason:
            self.state, self.reason = state, reason
            self._on_state(state, reason)

    def _plan_job(self) -> Job:
        """The job for the next decoder."""
        return self._job

    def _is_complete(self) -> bool:
        """Whether another decoder would have nothing to do."""
        return False

    def _fail(self, event: Event) -> None:
        """The decoder says that it cannot go on. Raises DecoderLostError, or StreamError where no other could."""
        found = str(event.fields.get("found", "its decoder gave no reason")).rstrip(".")
        raise DecoderLostError(found, DecoderLoss.SOURCE)

    @abstractmethod
    def _finish(self) -> None:
        """The source is at its end. Raises DecoderLostError where that cannot be meant."""

    def _first_messages(self) -> Iterable[bytes]:
        """What a new decoder is to be told after its job; called with the lock held."""
        return ()

    @abstractmethod
    def _end(self) -> None:
        """That decoder is gone."""

    @abstractmethod
    def _identify(self, message: FrameMessage) -> tuple[int | None, int, float] | None:
        """Sequence, the sender's clock and arrival of the frame in a message; None where nobody waits for it."""

    @abstractmethod
    def _drop(self, message: DropMessage) -> None:
        """Units gave no picture."""

    @abstractmethod
    def _note(self, event: Event) -> None:
        """The decoder said something else."""

    @abstractmethod
    def _watch(self, heard_at: float) -> None:
        """The decoder has said nothing for a moment, the last thing at `heard_at`. Raises DecoderLostError."""
