"""The sending half of a WebSocket that gets a stream's masks, from `ready` to the close frame."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from service.api.messages import (
    give_account,
    pack_answer,
    pack_closing,
    pack_error,
    pack_leaving,
    pack_model_change,
    pack_notice,
    pack_ready,
    shorten_reason,
)
from service.contract.masks import MaskFormat
from service.errors import OverloadedError, SurgsegError, UnavailableError
from service.frames import Stage
from service.pipeline.latest_frames import Mode
from service.pipeline.live_stream import LiveStream
from service.pipeline.pipeline import Pipeline
from service.pipeline.subscription import ModelChange, Subscription
from service.streams.decoded_video import StreamState

_log = logging.getLogger(__name__)
NORMAL = 1000
GOING_AWAY = 1001
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013
_MAX_WAITING_NOTICES = 8
_GOODBYE_S = 2.0
_ENDING = "The service is shutting down."


class MaskSession(ABC):
    """Lives on the event loop; only the callbacks it gives to the stream are called in other threads.

    One task receives, one sends, one watches that the sender is not stuck for ever. Subclasses have a `stream` and a
    `mailbox` before `run`, and say what they receive and how they leave.
    """

    stream: LiveStream
    mailbox: Subscription
    can_move = False
    """Whether the client wants to be told, and served meanwhile, when it should open the stream elsewhere."""

    def __init__(self, websocket: WebSocket, pipeline: Pipeline, mask_format: MaskFormat) -> None:
        state = websocket.app.state
        self._websocket = websocket
        self._pipeline = pipeline
        self._mask_format = mask_format
        self._telemetry = state.telemetry
        self._draining: asyncio.Event = state.draining
        self._drain_timeout_s: float = state.settings.drain_timeout_s
        self._is_recorded = state.settings.audit is not None
        self._viewer_timeout_s: float = state.settings.viewer_timeout_s
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._over = asyncio.Event()
        self._failure: SurgsegError | None = None
        self._farewell: str | None = None
        self._has_noticed = False
        self._notices: deque[str] = deque(maxlen=_MAX_WAITING_NOTICES)
        self._sending_since: float | None = None

    async def run(self) -> None:
        """Serve the client until it leaves, the stream ends, it does not read, or the service drains."""
        tasks: list[asyncio.Task[Any]] = []
        self._log("a client gets its masks")
        try:
            await self._websocket.send_text(self._pack_ready())
            receiver = asyncio.create_task(self._receive())
            sender = asyncio.create_task(self._send())
            watcher = asyncio.create_task(self._watch())
            draining, over = (asyncio.create_task(event.wait()) for event in (self._draining, self._over))
            tasks = [receiver, sender, watcher, over, draining]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            limit_s = self._drain_timeout_s
            if draining.done() and self.can_move:
                limit_s /= 2  # half to move, half for what is under way then
                self._tell(pack_leaving(_ENDING, limit_s))
                await asyncio.wait(tasks[:-1], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if sender.done() or (receiver.done() and not self._over.is_set()):
                return
            receiver.cancel()
            await self._finish(sender, limit_s)
        except WebSocketDisconnect:
            pass  # it left while we spoke
        finally:
            self._leave()
            ledger = self.stream.ledger
            self._log(f"a client has left after {ledger.received} frames, {ledger.segmented} with a mask")
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, WebSocketDisconnect):
                    raise outcome

    @abstractmethod
    async def _receive(self) -> None:
        """Read what the client sends; returns when it has left."""

    @abstractmethod
    def _leave(self) -> None:
        """The client is served no more."""

    def _has_more(self) -> bool:
        """Whether something is still to be sent before an orderly end."""
        return bool(self.stream.ledger.pending or len(self.mailbox) or self._sending_since is not None)

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while await self._send_next():
                pass

    async def _send_next(self) -> bool:
        """Send one event or one answer; False when there is nothing to send."""
        if self._notices:
            await self._send_text(self._notices.popleft())
            return True
        answer = self.mailbox.take()
        if answer is None:
            return False
        if isinstance(answer, ModelChange):
            await self._send_text(pack_model_change(answer.bundle))
            return True
        message = pack_answer(answer, self.stream, self._mask_format, self.mailbox.skipped)
        self._sending_since = time.monotonic()
        await self._websocket.send_bytes(message)
        self._sending_since = None
        self._note_sent(answer.segmented.frame.sequence)
        sent_s = time.monotonic() - answer.segmented.frame.timeline.ended_at
        self._telemetry.observe_stage(Stage.SEND, sent_s)
        if self.stream.mode is Mode.LATEST:
            self._pipeline.note_sent(self.stream, sent_s)
        return True

    async def _send_text(self, event: str) -> None:
        self._sending_since = time.monotonic()
        await self._websocket.send_text(event)
        self._sending_since = None

    @abstractmethod
    def _note_sent(self, sequence: int) -> None:
        """The mask of that frame has been sent."""

    async def _watch(self) -> None:
        """Returns when the client has taken nothing for too long."""
        while True:
            now = time.monotonic()
            stuck_s = 0.0 if self._sending_since is None else now - self._sending_since
            if stuck_s > self._viewer_timeout_s:
                self._failure = UnavailableError(
                    f"This viewer has taken nothing for {self._viewer_timeout_s:g} s.",
                    "a viewer that reads",
                    "Read what comes, over a faster network or with a smaller mask format.",
                )
                return
            await asyncio.sleep(min(1.0, self._viewer_timeout_s - stuck_s + 0.01))

    async def _finish(self, sender: asyncio.Task[None], limit_s: float) -> None:
        """Let the frames under way be answered, for `limit_s` at most, say why we close, close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while await self._is_busy() and not sender.done() and self._failure is None:
                    await asyncio.sleep(0.005)
        if sender.done():
            return
        sender.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self._say_goodbye()

    async def _is_busy(self) -> bool:
        if not self._has_more():
            await asyncio.sleep(0)  # what other threads have just asked of the loop comes first
        return self._has_more()

    async def _say_goodbye(self) -> None:
        if self._failure is not None:
            is_temporary = isinstance(self._failure, UnavailableError | OverloadedError)
            code = TRY_AGAIN_LATER if is_temporary else INTERNAL_ERROR
            await self._websocket.send_text(pack_error(self._failure, is_fatal=True))
            await self._websocket.close(code, shorten_reason(self._failure.found))
            return
        code, reason = (GOING_AWAY, _ENDING) if self._farewell is None else (NORMAL, self._farewell)
        await self._websocket.send_text(
            pack_closing(reason, **give_account(self.stream, self.mailbox.skipped))
        )
        await self._websocket.close(code, shorten_reason(reason))

    def _notice(self, state: StreamState, reason: str) -> None:
        if state is StreamState.RUNNING and not self._has_noticed:
            return  # it is what everybody assumes
        self._has_noticed = True
        self._tell(pack_notice(state, reason))

    def _tell(self, event: str) -> None:
        self._notices.append(event)
        self._wake.set()

    def _pack_ready(self) -> str:
        return pack_ready(
            self.mailbox.bundle,
            self.stream,
            self._mask_format,
            is_recorded=self._is_recorded,
            can_move=self.can_move,
        )

    def _fail(self, error: SurgsegError) -> None:
        self._failure = error
        self._over.set()

    def _log(self, what: str) -> None:
        stream = self.stream
        _log.info("%s (%s): %s", stream.id, stream.origin, what, extra={"stream": stream.id})

    def _call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        # The loop is gone only when the process ends; a reader or the publisher must not die of that.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)
