"""Which of several services a stream goes to, and which errors another might not give. Pure: no socket, no clock."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from service.errors import BackendError, InvalidRequestError, OverloadedError, SurgsegError, UnavailableError

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
_PASSING_CODES = {1001, 1005, 1006, 1011, 1012, 1013, 1014, None}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service answers: HTTP, and WebSockets."""

    http_url: str
    stream_url: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at opening a stream: `pause_s` after the one before it has failed."""

    url: str
    pause_s: float


def order_addresses(urls: str | Sequence[str]) -> tuple[Address, ...]:
    """Each address once, in an order of chance: clients that are given the same list spread over it.

    Raises InvalidRequestError when there is none, or one is not the address of a service.
    """
    given = (urls,) if isinstance(urls, str) else tuple(urls)
    addresses = tuple(dict.fromkeys(_split_url(url) for url in given))
    if not addresses:
        raise InvalidRequestError(
            "There is no address of a service.", "one or more", "Give one such as http://127.0.0.1:8000."
        )
    return tuple(random.sample(addresses, len(addresses)))


def plan_attempts(urls: Sequence[str], lost: str) -> Iterator[Attempt]:
    """Endless: every other replica at once, then the lost one, then in rounds with pauses that double up to 1 s.

    With one address, a balancer's, it is tried at once as well: another replica may stand behind it.
    """
    start = urls.index(lost) + 1
    order = (*urls[start:], *urls[:start])
    pause_s = 0.0
    while True:
        for place, url in enumerate(order):
            yield Attempt(url, pause_s if place == 0 else 0.0)
        pause_s = min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)


def is_passing(error: SurgsegError) -> bool:
    """Whether a service's own words mean that another replica, or the same one later, may do it."""
    return isinstance(error, UnavailableError | OverloadedError | BackendError)


def is_passing_code(close_code: int | None) -> bool:
    """The same of a connection that ended without an `error` event; None and 1006 are a lost connection."""
    return close_code in _PASSING_CODES


def _split_url(url: str) -> Address:
    parts = urlsplit(url)
    schemes = {
        "http": ("http", "ws"),
        "ws": ("http", "ws"),
        "https": ("https", "wss"),
        "wss": ("https", "wss"),
    }
    if parts.scheme not in schemes or not parts.netloc:
        raise InvalidRequestError(
            f"{url!r} is not the address of a service.",
            "an address such as http://127.0.0.1:8000 or ws://127.0.0.1:8000",
            "Give the scheme, the host and the port.",
        )
    rest = parts.netloc + parts.path.rstrip("/").removesuffix("/v1/stream")
    http, websocket = schemes[parts.scheme]
    return Address(f"{http}://{rest}", f"{websocket}://{rest}")
