"""The client's end of `/v1/stream`: frames are pushed, masks are received in a thread of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any, cast

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from service.contract.geometry import Image, Mask
from service.contract.masks import MaskFormat, decode_mask
from service.errors import (
    InvalidRequestError,
    StreamError,
    SurgsegError,
    UnavailableError,
)
from service.wire import (
    Codec,
    MaskHeader,
    Mode,
    PushedFrame,
    encode_picture,
    pack_frame,
    rebuild_error,
    unpack_event,
    unpack_mask,
)

EventHandler = Callable[[dict[str, Any]], None]

_LOG = logging.getLogger(__name__)
_QUIET_S = 2.0  # a live stream's last frames may be dropped: so long we wait for an answer to them
_WINDOW = 16  # frames of mode `every` on their way at once: enough to keep a far service busy
_GOING_AWAY = 1001
_NORMAL = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskMessage(MaskHeader):
    """The mask of one frame, after what the service says about it.

    `mask_hw` is uint8 class ids at the model's scale and covers exactly the `width` x `height` frame: stretch
    it over the picture. `data` is the same mask as it came, in the format that `mask` names. `arrived_at` is
    when it came, monotonic seconds.
    """

    mask_hw: Mask
    data: bytes
    arrived_at: float


class MaskStream:
    """An open stream. One thread may push while another reads; a third thread, its own, receives.

    Unread answers are bounded by `capacity`. In mode `latest` the oldest gives way and is counted in
    `unread`; in mode `every` none may be lost, so `push` waits while too many frames are unanswered or
    unread, and raises StreamError when nobody answers or reads for `timeout_s`: the stream cannot lock up.
    `socket` has said `ready`; `connection` is what closes it.
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
        self.ready = ready
        self.unread = 0
        self._socket = socket
        self._connection = connection
        self._url = url
        self._codec = codec
        self._mode = mode
        self._on_event = on_event or _log_event
        self._capacity = capacity
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._answers: deque[MaskMessage] = deque()
        self._pushed = 0
        self._settled = 0  # the last frame, counted from 1, that we know to be answered or refused
        self._is_finished = False
        self._is_closing = False
        self._is_over = False
        self._error: SurgsegError | None = None
        self._failure: SurgsegError | None = None
        self._receiver = threading.Thread(target=self._receive, name="surgseg-receiver", daemon=True)
        self._receiver.start()

    def __enter__(self) -> MaskStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def receive(self, timeout_s: float | None = None) -> MaskMessage | None:
        """The next mask; None when none came in time, or when the stream has ended and all were read.

        Raises the error that ended the stream, after the masks that came before it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._answers or self._has_ended(), timeout_s)
            if not self._answers:
                if self._failure:
                    raise self._failure
                return None
            self._changed.notify_all()
            return self._answers.popleft()

    def arrived(self) -> Iterator[MaskMessage]:
        """The masks that have come so far; never waits."""
        while (message := self.receive(timeout_s=0)) is not None:
            yield message

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

    def close(self) -> None:
        """Close the connection; masks that have not come yet are given up. Safe to call twice."""
        with self._changed:
            self._is_closing = True
        self._connection.close()
        self._receiver.join(self._timeout_s)

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

    def _receive(self) -> None:
        failure: SurgsegError | None = None
        try:
            for message in self._socket:
                if isinstance(message, str):
                    self._take_event(unpack_event(message))
                else:
                    self._take_answer(bytes(message))
        except ConnectionClosed:
            pass  # the verdict below says what it means
        except SurgsegError as error:
            failure = error
            self._socket.close()
        finally:
            with self._changed:
                self._failure = failure or self._verdict()
                self._is_over = True
                self._changed.notify_all()

    def _take_answer(self, message: bytes) -> None:
        arrived_at = time.monotonic()
        answer = _open_answer(message, arrived_at)
        with self._changed:
            self._settled = max(self._settled, answer.sequence)
            if self._mode == "latest" and len(self._answers) >= self._capacity:
                self._answers.popleft()
                self.unread += 1
            self._answers.append(answer)
            self._changed.notify_all()

    def _take_event(self, event: dict[str, Any]) -> None:
        with self._changed:
            if event["type"] == "error" and event.get("fatal", True):
                self._error = rebuild_error(event)
            if isinstance(event.get("sequence"), int):
                self._settled = max(self._settled, event["sequence"])
                self._changed.notify_all()
        self._on_event(event)

    def _verdict(self) -> SurgsegError | None:
        """Why the connection ended: None when that was meant."""
        if self._is_closing:
            return None
        if self._error:
            return self._error
        code = self._socket.close_code
        if code == _NORMAL:
            return None
        if code == _GOING_AWAY:
            found = f"The service at {self._url} is shutting down."
            return UnavailableError(found, "a running service", "Connect again later.")
        return self._lost(f"code {code} {self._socket.close_reason or ''}".rstrip())

    def _lost(self, how: str) -> StreamError:
        return StreamError(
            f"The connection to {self._url} was lost ({how}).",
            "an open connection",
            "Check the network and the service's log, and open a new stream.",
        )

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


def _open_answer(message: bytes, arrived_at: float) -> MaskMessage:
    header, data = unpack_mask(message)
    try:
        mask_hw = decode_mask(data, cast(MaskFormat, header.mask))
    except ValueError as error:
        raise StreamError(
            f"The mask of frame {header.sequence} is not {header.mask}.",
            "a whole mask",
            "Check the versions.",
        ) from error
    values = {entry.name: getattr(header, entry.name) for entry in fields(header)}
    return MaskMessage(**values, mask_hw=mask_hw, data=data, arrived_at=arrived_at)


def _log_event(event: dict[str, Any]) -> None:
    level = logging.WARNING if event["type"] in {"error", "closing"} else logging.INFO
    _LOG.log(level, "%s: %s", event["type"], event.get("detail") or event.get("reason") or event)
