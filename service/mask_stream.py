"""The client's end of `/v1/stream`: frames are pushed, masks are received."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from service.contract.geometry import Image
from service.errors import InvalidRequestError, StreamError
from service.mask_receiver import EventHandler, MaskMessage, MaskReceiver
from service.wire import Codec, Mode, PushedFrame, encode_picture, pack_frame

_QUIET_S = 2.0  # a live stream's last frames may be dropped: so long we wait for an answer to them
_WINDOW = 16  # frames of mode `every` on their way at once: enough to keep a far service busy


class MaskStream(MaskReceiver):
    """An open stream. One thread may push while another reads; a third thread, its own, receives.

    Unread answers are bounded by `capacity`. In mode `latest` the oldest gives way and is counted in
    `unread`; in mode `every` none may be lost, so `push` waits while too many frames are unanswered or
    unread, and raises StreamError when nobody answers or reads for `timeout_s`: the stream cannot lock up.
    """

    def __init__(
        self,
        socket: ClientConnection,
        connection: ExitStack,
        ready: dict[str, Any],
        *,
        url: str,
        codec: Codec,
        mode: Mode,
        on_event: EventHandler | None,
        capacity: int,
        timeout_s: float,
    ) -> None:
        self._codec = codec
        self._pushed = 0
        self._settled = 0  # the last frame, counted from 1, that we know to be answered or refused
        self._is_finished = False
        super().__init__(
            socket,
            connection,
            ready,
            url=url,
            mode=mode,
            on_event=on_event,
            capacity=capacity,
            timeout_s=timeout_s,
        )

    def push(self, image: Image | bytes, captured_at_us: int | None = None) -> int:
        """Send one frame: uint8 RGB `(H, W, 3)`, encoded here, or bytes in the stream's codec.

        `captured_at_us` comes back with the mask; without one the monotonic clock is used. Returns the value
        sent. Raises the error that ended the stream, if one did.
        """
        payload = image if isinstance(image, bytes) else encode_picture(image, self._codec)
        stamp_us = time.monotonic_ns() // 1000 if captured_at_us is None else captured_at_us
        message = pack_frame(PushedFrame(stamp_us, payload))
        with self._changed:
            self._wait_for_room()
            self._raise_if_over()
            self._pushed += 1
        try:
            self._socket.send(message)
        except (ConnectionClosed, OSError) as error:
            self._receiver.join(self._timeout_s)
            raise (self._failure or self._lost("while a frame was sent")) from error
        return stamp_us

    def finish(self) -> Iterator[MaskMessage]:
        """Push no more; gives the masks still to come. An iteration in another thread then ends as well."""
        with self._changed:
            self._is_finished = True
            self._changed.notify_all()
        return iter(self)

    def __iter__(self) -> Iterator[MaskMessage]:
        """Every mask as it comes, until the stream ends or, after `finish`, all frames are accounted for.

        Raises the error that ended the stream, and StreamError when frames of mode `every` stay unanswered.
        """
        while True:
            message = self.receive(_QUIET_S if self._mode == "latest" else self._timeout_s)
            if message is not None:
                yield message
                continue
            with self._changed:
                if self._answers:
                    continue
                if self._has_ended() or (self._is_finished and self._mode == "latest"):
                    return
                if self._is_finished:
                    raise self._silent()

    def _has_ended(self) -> bool:
        return self._is_over or (self._is_finished and self._settled >= self._pushed)

    def _wait_for_room(self) -> None:
        if self._mode != "every":
            return
        has_room = self._changed.wait_for(
            lambda: self._is_over or (self._unanswered < _WINDOW and len(self._answers) < self._capacity),
            self._timeout_s,
        )
        if not has_room:
            raise self._unread() if len(self._answers) >= self._capacity else self._silent()

    @property
    def _unanswered(self) -> int:
        return self._pushed - self._settled

    def _raise_if_over(self) -> None:
        if self._failure:
            raise self._failure
        if self._is_over or self._is_closing or self._is_finished:
            raise InvalidRequestError(
                "A frame was pushed after the stream had ended.",
                "an open stream",
                "Push before `finish` and `close`, or open a new stream.",
            )

    def _wait_to_receive(self) -> None:
        """Never: what comes is bounded by what was pushed."""

    def _note_answer(self, answer: MaskMessage) -> None:
        self._settled = max(self._settled, answer.sequence)

    def _take_event(self, event: dict[str, Any]) -> None:
        if isinstance(event.get("sequence"), int):
            with self._changed:
                self._settled = max(self._settled, event["sequence"])
                self._changed.notify_all()
        super()._take_event(event)

    def _silent(self) -> StreamError:
        return StreamError(
            f"{self._url} has left {self._unanswered} frames unanswered for {self._timeout_s:g} s.",
            "an answer to every frame",
            "Check the service's load and its log.",
        )

    def _unread(self) -> StreamError:
        return StreamError(
            f"{len(self._answers)} masks lie unread.",
            f"fewer than {self._capacity} on a stream that keeps every frame",
            "Read masks while pushing: in the same loop with `arrived`, or in another thread.",
        )
