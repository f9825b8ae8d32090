"""One viewer on `/v1/streams/{id}/masks`, from `ready` to the close frame."""

from __future__ import annotations

from fastapi import WebSocket

from service.api.mask_session import MaskSession
from service.contract.masks import MaskFormat
from service.errors import SurgsegError
from service.pipeline.pipeline import Pipeline
from service.pipeline.pulled_stream import PulledStream, ViewerCallbacks
from service.streams.decoded_video import StreamState


class ViewerSession(MaskSession):
    """Masks out; what the viewer sends is not looked at. Raises UnavailableError when there are too many."""

    stream: PulledStream

    def __init__(
        self, websocket: WebSocket, pipeline: Pipeline, stream: PulledStream, mask_format: MaskFormat
    ) -> None:
        super().__init__(websocket, pipeline, mask_format)
        self.stream = stream
        state, reason = stream.state
        if state not in (StreamState.RUNNING, StreamState.ENDED, StreamState.FAILED):
            self._notice(StreamState(state), reason)
        self.mailbox = stream.watch(
            mask_format,
            ViewerCallbacks(
                on_answer=lambda: self._call_soon(self._wake.set),
                on_state=lambda state, reason: self._call_soon(self._notice, state, reason),
                on_end=lambda error: self._call_soon(self._end, error),
            ),
        )

    async def _receive(self) -> None:
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass

    def _note_sent(self, sequence: int) -> None:
        """Nothing here has to wait until a mask has been sent."""

    def _leave(self) -> None:
        self.stream.unsubscribe(self.mailbox)

    def _end(self, error: SurgsegError | None) -> None:
        if error is not None:
            self._fail(error)
            return
        has_ended = self.stream.state[0] == StreamState.ENDED
        self._farewell = "The source is at its end." if has_ended else "The stream was closed."
        self._over.set()
