"""Opening a WebSocket of the service, up to its `ready`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from service.credentials import Credentials
from service.errors import InvalidRequestError, StreamError, SurgsegError, UnavailableError
from service.wire import rebuild_error, unpack_event

_GATEWAY_STATUSES = {502, 503, 504}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection is held to be one.

    Every `ping_s` the service is asked for a sign of life, and has as long to give it; it is not heard while `queue`
    messages lie unread. It has `close_s` to answer a close frame.
    """

    ping_s: float = 20.0
    close_s: float = 10.0
    queue: int = 16


@contextmanager
def connect_ready(
    url: str, credentials: Credentials, capacity: int, timeout_s: float, patience: Patience | None = None
) -> Iterator[tuple[ClientConnection, ExitStack, dict[str, Any]]]:
    """Connect, and wait for the service's `ready`; the socket is closed unless its stack is taken over.

    Raises the error that the service answers with instead.
    """
    if capacity < 1:
        raise InvalidRequestError(f"capacity is {capacity}.", "at least 1", "Leave it out for 64.")
    with ExitStack() as stack:
        socket = _connect(stack, url, credentials, timeout_s, patience or Patience())
        yield socket, stack, _read_ready(socket, url, timeout_s)


def _connect(
    stack: ExitStack, url: str, credentials: Credentials, timeout_s: float, patience: Patience
) -> ClientConnection:
    try:
        return stack.enter_context(
            connect(
                url,
                open_timeout=timeout_s,
                compression=None,
                max_size=None,
                max_queue=patience.queue,
                ssl=credentials.verify() if url.startswith("wss:") else None,
                additional_headers=credentials.headers(),
                ping_interval=patience.ping_s,
                ping_timeout=patience.ping_s,
                close_timeout=patience.close_s,
            )
        )
    except InvalidStatus as error:
        raise _read_refusal(url, error) from error
    except (OSError, WebSocketException) as error:
        raise UnavailableError(
            f"{url} does not answer ({error.__class__.__name__}: {error}).",
            "a running surgseg service",
            "Start it with `surgseg serve`, or check the address.",
        ) from error


def _read_ready(socket: ClientConnection, url: str, timeout_s: float) -> dict[str, Any]:
    try:
        message = socket.recv(timeout=timeout_s)
    except (ConnectionClosed, TimeoutError) as error:
        raise UnavailableError(
            f"{url} did not say that it is ready ({error.__class__.__name__}).",
            "a `ready` event",
            "Check that it is a surgseg service, and its log.",
        ) from error
    event = unpack_event(message) if isinstance(message, str) else {"type": "a mask"}
    if event["type"] == "error":
        raise rebuild_error(event)
    if event["type"] != "ready":
        raise StreamError(f"{url} began with {event['type']}.", "a `ready` event", "Check its version.")
    return event


def _read_refusal(url: str, error: InvalidStatus) -> SurgsegError:
    try:
        problem = json.loads(error.response.body or b"")
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        return rebuild_error(problem)
    kind = UnavailableError if error.response.status_code in _GATEWAY_STATUSES else StreamError
    return kind(
        f"{url} refused the stream with HTTP {error.response.status_code}.",
        "a surgseg service that accepts it",
        "Check the address and the service's log.",
    )
