"""A stream's way to a service: opening it at one of several addresses, and again at another when it is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from websockets.sync.client import ClientConnection

from service.credentials import Credentials
from service.errors import SurgsegError, UnavailableError
from service.mask_socket import Patience, connect_ready
from service.replicas import is_passing, is_passing_code, plan_attempts

_ATTEMPT_S = 2.0  # a machine that is switched off refuses nothing: so long it may hold up the next attempt
_SHORTEST_PING_S, _LONGEST_PING_S = 1.0, 20.0
_CLOSE_S = 1.0  # who answers no ping answers no close frame either, and holds the stream up for so long
_QUEUE = 512  # masks of a connection that is read later, while the one before it has its last word


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection that has said `ready`; whoever takes it closes `connection`. `url` is the service's address."""

    socket: ClientConnection
    connection: ExitStack
    ready: dict[str, Any]
    url: str

    def abandon(self) -> None:
        """Close it at once, without a word to the service: a closing handshake may wait for who does not read."""
        self.socket.close_socket()
        self.connection.close()


class Route:
    """Opens one stream, as often as it is lost or has to move. Any thread may call any method.

    A stream may be without service for `max_gap_s`, counted from the first loss after an answer, so that one which is
    opened and lost in turns comes to an end too. 0: it ends with its connection. A service that answers no ping for
    half of `max_gap_s` (40 s at most) is taken for lost a second later.
    """

    def __init__(
        self,
        urls: Sequence[str],
        path: str,
        credentials: Credentials,
        *,
        capacity: int,
        timeout_s: float,
        max_gap_s: float,
    ) -> None:
        self._urls = urls
        self._path = path
        self._credentials = credentials
        self._capacity = capacity
        self._timeout_s = timeout_s
        self.max_gap_s = max_gap_s
        ping_s = min(_LONGEST_PING_S, max(_SHORTEST_PING_S, max_gap_s / 4))
        self._patience = Patience(ping_s, _CLOSE_S, _QUEUE) if max_gap_s else Patience()
        self._lost_at: float | None = None

    def open(self) -> Opened:
        """The first connection: every address once, without a pause. Raises the last one's error."""
        *others, last = self._urls
        for url in others:
            try:
                return self._connect(url, self._timeout_s)
            except SurgsegError as error:
                if not is_passing(error):
                    raise
        return self._connect(last, self._timeout_s)

    def may_resume(self, failure: SurgsegError, said: SurgsegError | None, close_code: int | None) -> bool:
        """Whether a stream that ended with `failure` may go on: `said` is the service's own error, if it sent one."""
        if not self.max_gap_s:
            return False
        return is_passing(said) if said is not None else is_passing(failure) or is_passing_code(close_code)

    def note_answer(self) -> None:
        """The service serves: a gap, if there was one, is over."""
        self._lost_at = None

    def reopen(self, lost_url: str, has_to_end: Callable[[float], bool]) -> Opened | None:
        """Another connection; None when `has_to_end`, which is asked to wait for each pause, says so.

        Raises UnavailableError when `max_gap_s` is over.
        """
        self._lost_at = self._lost_at or time.monotonic()
        try:
            return self.open_elsewhere(lost_url, self._lost_at + self.max_gap_s, has_to_end)
        except UnavailableError as refusal:
            raise UnavailableError(
                f"The stream had no service for {self.max_gap_s:g} s. {refusal.found}".rstrip(),
                "a replica that takes it in that time",
                "Check the services, or allow a longer gap (max_gap_s).",
            ) from refusal

    def open_elsewhere(
        self, left_url: str, ends_at: float, has_to_end: Callable[[float], bool]
    ) -> Opened | None:
        """Another connection than that to `left_url`, by `ends_at` (monotonic); otherwise as `reopen`.

        Raises UnavailableError with the last refusal.
        """
        found = ""
        for attempt in plan_attempts(self._urls, left_url):
            if has_to_end(attempt.pause_s):
                return None
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                break
            try:
                return self._connect(attempt.url, min(_ATTEMPT_S, left_s))
            except SurgsegError as error:
                found = error.found
        raise UnavailableError(found, "a replica that takes the stream", "Check the services.")

    def _connect(self, url: str, timeout_s: float) -> Opened:
        address = url + self._path
        opening = connect_ready(address, self._credentials, self._capacity, timeout_s, self._patience)
        with opening as (socket, connection, ready):
            return Opened(socket, connection.pop_all(), ready, url)
