"""One client on `/v1/stream`, from `ready` to the close frame."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from service.api.messages import (
    pack_answer,
    pack_closing,
    pack_error,
    pack_notice,
    pack_ready,
    shorten_reason,
)
from service.contract.masks import MaskFormat
from service.errors import InvalidRequestError, SurgsegError
from service.frames import Stage
from service.pipeline.latest_frames import Mode
from service.pipeline.live_stream import PushCallbacks
from service.pipeline.pipeline import Pipeline
from service.streams.decoded_video import StreamState
from service.wire import unpack_frame

GOING_AWAY = 1001
INTERNAL_ERROR = 1011
_MAX_WAITING_ERRORS = 32
_MAX_WAITING_NOTICES = 8
_GOODBYE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An error that the stream survives; `sequence` where it took a frame away."""

    error: SurgsegError
    sequence: int | None = None


class StreamSession:
    """Lives on the event loop; only the callbacks it gives to the stream are called in other threads.

    One task receives, one sends. A lossless stream reads its next message only when the decoder has taken the
    one before, so back-pressure reaches the sender through TCP. Raises UnavailableError when no stream may be
    opened.
    """

    def __init__(
        self,
        websocket: WebSocket,
        pipeline: Pipeline,
        *,
        codec: str,
        mask_format: MaskFormat,
        mode: Mode,
        draining: asyncio.Event,
        drain_timeout_s: float,
    ) -> None:
        self._websocket = websocket
        self._pipeline = pipeline
        self._telemetry = websocket.app.state.telemetry
        self._mask_format = mask_format
        self._draining = draining
        self._drain_timeout_s = drain_timeout_s
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._failed = asyncio.Event()
        self._room = asyncio.Semaphore(1)
        self._refusals: deque[_Refusal] = deque()
        self._notices: deque[str] = deque(maxlen=_MAX_WAITING_NOTICES)
        self._failure: SurgsegError | None = None
        self._answered = 0
        self._stream = pipeline.open_pushed(
            codec,
            mode,
            PushCallbacks(
                on_lost=lambda sequence, error: self._call_soon(self._refuse, error, sequence),
                on_room=lambda: self._call_soon(self._room.release),
                on_failure=lambda error: self._call_soon(self._fail, error),
                on_state=lambda state, reason: self._call_soon(self._notice, state, reason),
            ),
        )
        self._mailbox = self._stream.subscribe(mask_format, mode, lambda: self._call_soon(self._wake.set))

    async def run(self) -> None:
        """Serve the client until it leaves, the stream fails, or the service drains."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._websocket.send_text(
                pack_ready(self._pipeline.bundle.card, self._stream, self._mask_format)
            )
            receiver = asyncio.create_task(self._receive())
            sender = asyncio.create_task(self._send())
            ends = [asyncio.create_task(event.wait()) for event in (self._draining, self._failed)]
            tasks = [receiver, sender, *ends]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if sender.done() or receiver.done():
                return
            receiver.cancel()
            await self._finish(sender)
        except WebSocketDisconnect:
            pass  # it left while we spoke
        finally:
            self._stream.close()
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, WebSocketDisconnect):
                    raise outcome

    async def _receive(self) -> None:
        is_lossless = self._stream.mode is Mode.EVERY
        while True:
            if is_lossless:
                await self._room.acquire()
            while len(self._refusals) >= _MAX_WAITING_ERRORS:
                self._sent.clear()
                await self._sent.wait()
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if not self._accept(message) and is_lossless:
                self._room.release()

    def _accept(self, message: Any) -> bool:
        """Push the frame that a message carries; False, with an error event, when it carries none."""
        try:
            if message.get("bytes") is None:
                raise InvalidRequestError(
                    "The message is text.",
                    "a binary message: 8 bytes of captured_at_us and a picture",
                    "Send binary messages; the stream goes on.",
                )
            pushed = unpack_frame(message["bytes"])
        except InvalidRequestError as error:
            self._refuse(error)
            return False
        self._stream.push(pushed.payload, pushed.captured_at_us)
        return True

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while await self._send_next():
                self._sent.set()

    async def _send_next(self) -> bool:
        """Send one event or one answer; False when there is nothing to send."""
        if self._notices:
            await self._websocket.send_text(self._notices.popleft())
            return True
        if self._refusals and self._is_due(self._refusals[0]):
            refusal = self._refusals.popleft()
            self._answered = max(self._answered, refusal.sequence or 0)
            event = pack_error(refusal.error, is_fatal=False, sequence=refusal.sequence)
            await self._websocket.send_text(event)
            return True
        answer = self._mailbox.take()
        if answer is None:
            return False
        message = pack_answer(answer, self._stream, self._mask_format, self._mailbox.skipped)
        await self._websocket.send_bytes(message)
        frame = answer.segmented.frame
        self._answered = frame.sequence
        self._telemetry.observe_stage(Stage.SEND, time.monotonic() - frame.timeline.ended_at)
        return True

    def _is_due(self, refusal: _Refusal) -> bool:
        """A lossless stream is answered in order, so an error waits for the masks of the frames before it."""
        if refusal.sequence is None or self._stream.mode is Mode.LATEST:
            return True
        return refusal.sequence <= self._answered + 1

    async def _finish(self, sender: asyncio.Task[None]) -> None:
        """Let the frames under way be answered, say why we close, close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_timeout_s):
                while self._stream.ledger.pending or self._refusals or len(self._mailbox):
                    if sender.done() or self._failure is not None:
                        break
                    await asyncio.sleep(0.005)
        if sender.done():
            return
        sender.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                if self._failure is not None:
                    await self._websocket.send_text(pack_error(self._failure, is_fatal=True))
                    await self._websocket.close(INTERNAL_ERROR, shorten_reason(self._failure.found))
                else:
                    await self._websocket.send_text(pack_closing("The service is shutting down."))
                    await self._websocket.close(GOING_AWAY, "The service is shutting down.")

    def _refuse(self, error: SurgsegError, sequence: int | None = None) -> None:
        self._refusals.append(_Refusal(error, sequence))
        self._wake.set()

    def _notice(self, state: StreamState, reason: str) -> None:
        self._notices.append(pack_notice(state, reason))
        self._wake.set()

    def _fail(self, error: SurgsegError) -> None:
        self._failure = error
        self._failed.set()

    def _call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        # The loop is gone only when the process ends; a reader or the publisher must not die of that.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)
