"""The client's end of a WebSocket that brings masks: they are received in a thread of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any, Self, cast

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from service.contract.geometry import Mask
from service.contract.masks import MaskFormat, decode_mask
from service.errors import StreamError, SurgsegError, UnavailableError
from service.wire import MaskHeader, Mode, rebuild_error, unpack_event, unpack_mask

EventHandler = Callable[[dict[str, Any]], None]

_LOG = logging.getLogger(__name__)
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


class MaskReceiver:
    """Masks as they come. One thread may read; another, its own, receives.

    Unread answers are bounded by `capacity`: in mode `latest` the oldest gives way and is counted in `unread`, in mode
    `every` the receiver reads no further, and with it the service. `socket` has said `ready`; `connection` is what
    closes it. The `model` and `classes` of `ready` follow the service's; the `model` of a mask says which one made it.
    """

    def __init__(
        self,
        socket: ClientConnection,
        connection: ExitStack,
        ready: dict[str, Any],
        *,
        url: str,
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
        self._mode = mode
        self._on_event = on_event or _log_event
        self._capacity = capacity
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._answers: deque[MaskMessage] = deque()
        self._is_closing = False
        self._is_over = False
        self._error: SurgsegError | None = None
        self._failure: SurgsegError | None = None
        self._receiver = threading.Thread(target=self._receive, name="surgseg-receiver", daemon=True)
        self._receiver.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def __iter__(self) -> Iterator[MaskMessage]:
        """Every mask as it comes, until the stream ends. Raises the error that ended it."""
        while True:
            message = self.receive()
            if message is None:
                return
            yield message

    def close(self) -> None:
        """Close the connection; masks that have not come yet are given up. Safe to call twice."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._connection.close()
        self._receiver.join(self._timeout_s)

    def _has_ended(self) -> bool:
        return self._is_over

    def _wait_to_receive(self) -> None:
        """Hold the service back where no mask may be lost; the lock is held."""
        if self._mode == "every":
            self._changed.wait_for(lambda: len(self._answers) < self._capacity or self._is_closing)

    def _receive(self) -> None:
        failure: SurgsegError | None = None
        try:
            failure = self._receive_until_closed()
            while self._goes_on(failure):
                failure = self._receive_until_closed()
        finally:
            with self._changed:
                self._failure = None if self._is_closing else self._failure or failure
                self._is_over = True
                self._changed.notify_all()

    def _receive_until_closed(self) -> SurgsegError | None:
        """Why the connection ended; None when that was meant."""
        try:
            for message in self._socket:
                if isinstance(message, str):
                    self._take_event(unpack_event(message))
                else:
                    self._take_answer(bytes(message))
        except ConnectionClosed:
            pass  # the verdict below says what it means
        except SurgsegError as error:
            self._socket.close()
            return error
        return self._verdict()

    def _goes_on(self, failure: SurgsegError | None) -> bool:
        """Whether another connection follows one that ended with `failure`, or as it was meant to."""
        return False

    def _take_answer(self, message: bytes) -> None:
        answer = _open_answer(message, time.monotonic())
        with self._changed:
            answer = self._note_answer(answer)
            self._wait_to_receive()
            if self._mode == "latest" and len(self._answers) >= self._capacity:
                self._answers.popleft()
                self.unread += 1
            self._answers.append(answer)
            self._changed.notify_all()

    def _note_answer(self, answer: MaskMessage) -> MaskMessage:
        """An answer has come; gives it as the reader is to see it. The lock is held."""
        return answer

    def _take_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "notice" and "model" in event:
            self.ready = {**self.ready, "model": event["model"], "classes": event["classes"]}
        if event["type"] == "error" and event.get("fatal", True):
            self._error = rebuild_error(event)
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
