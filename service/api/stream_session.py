"""One client on `/v1/stream`, from `ready` to the close frame."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from fastapi import WebSocket

from service.api.mask_session import MaskSession
from service.api.messages import pack_error
from service.contract.masks import MaskFormat
from service.errors import InvalidRequestError, SurgsegError
from service.pipeline.latest_frames import Mode
from service.pipeline.pipeline import Pipeline
from service.pipeline.pushed_stream import PushCallbacks, PushedStream
from service.pipeline.stream_terms import StreamTerms
from service.streams.pushed import LOSSLESS_PUSHES
from service.wire import END, is_end, unpack_frame

_log = logging.getLogger(__name__)
_MAX_WAITING_ERRORS = 32
_ENDED = "The client has ended the stream."


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An error that the stream survives; `sequence` where it took a frame away."""

    error: SurgsegError
    sequence: int | None = None


class StreamSession(MaskSession):
    """Frames in, masks out; the stream lives as long as its connection.

    Raises UnavailableError or OverloadedError when none may be opened. A lossless stream reads only a few messages
    more than the decoder has taken, so back-pressure reaches the sender through TCP.
    """

    stream: PushedStream

    def __init__(
        self,
        websocket: WebSocket,
        pipeline: Pipeline,
        *,
        codec: str,
        mask_format: MaskFormat,
        terms: StreamTerms,
        can_move: bool,
    ) -> None:
        super().__init__(websocket, pipeline, mask_format)
        self.can_move = can_move
        self._sent = asyncio.Event()
        self._room = asyncio.Semaphore(LOSSLESS_PUSHES)
        self._refusals: deque[_Refusal] = deque()
        self._answered = 0
        self._masks = 0
        self.stream = pipeline.open_pushed(
            codec,
            terms,
            PushCallbacks(
                on_lost=lambda sequence, error: self._call_soon(self._refuse, error, sequence),
                on_room=lambda: self._call_soon(self._room.release),
                on_failure=lambda error: self._call_soon(self._fail, error),
                on_state=lambda state, reason: self._call_soon(self._notice, state, reason),
            ),
        )
        self.mailbox = self.stream.subscribe(mask_format, terms.mode, lambda: self._call_soon(self._wake.set))

    async def _receive(self) -> None:
        is_lossless = self.stream.mode is Mode.EVERY
        while True:
            if is_lossless:
                await self._room.acquire()
            while len(self._refusals) >= _MAX_WAITING_ERRORS:
                self._sent.clear()
                await self._sent.wait()
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if is_end(message.get("text") or ""):
                self._farewell = _ENDED
                self.stream.finish()
                self._over.set()
                return
            if not self._accept(message) and is_lossless:
                self._room.release()

    def _accept(self, message: Any) -> bool:
        """Push the frame that a message carries; False, with an error event, when it carries none."""
        try:
            if message.get("bytes") is None:
                raise InvalidRequestError(
                    "The message is text.",
                    f"a binary message: 8 bytes of captured_at_us and a picture, or {END} after the last one",
                    "Send binary messages; the stream goes on.",
                )
            pushed = unpack_frame(message["bytes"])
        except InvalidRequestError as error:
            self._refuse(error)
            return False
        self.stream.push(pushed.payload, pushed.captured_at_us)
        return True

    async def _send_next(self) -> bool:
        if not self._notices and self._refusals and self._is_due(self._refusals[0]):
            refusal = self._refusals.popleft()
            self._answered = max(self._answered, refusal.sequence or 0)
            await self._send_text(pack_error(refusal.error, is_fatal=False, sequence=refusal.sequence))
            has_sent = True
        else:
            has_sent = await super()._send_next()
        if has_sent:
            self._sent.set()
        return has_sent

    def _note_sent(self, sequence: int) -> None:
        self._answered = sequence
        self._masks += 1

    def _is_due(self, refusal: _Refusal) -> bool:
        """A lossless stream is answered in order, so an error waits for the masks of the frames before it."""
        if refusal.sequence is None or self.stream.mode is Mode.LATEST:
            return True
        return refusal.sequence <= self._answered + 1

    def _has_more(self) -> bool:
        """A mask is on its way to the mailbox where there are more than have been sent or skipped."""
        is_awaited = self.stream.ledger.segmented > self._masks + self.mailbox.skipped
        return bool(self._refusals) or is_awaited or super()._has_more()

    def _leave(self) -> None:
        self.stream.close()

    def _refuse(self, error: SurgsegError, sequence: int | None = None) -> None:
        _log.debug(
            *("%s, frame %s: %s", self.stream.id, sequence, error.found),
            extra={"stream": self.stream.id, "frame": sequence},
        )
        self._refusals.append(_Refusal(error, sequence))
        self._wake.set()
