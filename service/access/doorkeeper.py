"""Who is let in, and who may stay. Pure: requests, instants and days are given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date

from service.access.origins import check_origin
from service.access.rates import TokenBucket
from service.access.scopes import READING, Kind, Scope, scopes_for
from service.access.tokens import Token, find_token
from service.errors import ForbiddenError, TooManyRequestsError, UnauthorizedError

_BURST_S = 1.0


@dataclass(frozen=True, slots=True)
class Visit:
    """What of a request counts at the door. `origin` is empty where no browser sent it, `secret` without a token."""

    kind: Kind
    method: str
    path: str
    host: str = ""
    origin: str = ""
    is_encrypted: bool = False
    secret: str = field(default="", repr=False)


class Guest:
    """A token and how much of its limits it has used; it outlives changes of its line, as long as the hash stays."""

    def __init__(self, token: Token) -> None:
        self.token = token
        self.sockets = 0
        self._make_buckets()

    def change(self, token: Token) -> None:
        """Go by another line of the same hash; what has been used counts on where the limits are the same."""
        before, self.token = self.token, token
        if token.limits != before.limits:
            self._make_buckets()

    def _make_buckets(self) -> None:
        self.requests = _make_bucket(self.token.limits.requests_per_s)
        self.bytes = _make_bucket(self.token.limits.bytes_per_s)


class Doorkeeper:
    """Decides by token, scope, origin and limits. For one thread."""

    def __init__(
        self,
        tokens: Iterable[Token] | None,
        *,
        origins: frozenset[str] = frozenset(),
        is_private: bool = True,
    ) -> None:
        """Without `tokens` nobody needs one. `origins` and `is_private`: see `check_origin`."""
        self._guests: dict[str, Guest] | None = None
        if tokens is not None:
            self.replace_tokens(tokens)
        self._origins = origins
        self._is_private = is_private and tokens is None

    def replace_tokens(self, tokens: Iterable[Token]) -> None:
        """Go by other tokens from now on."""
        known, self._guests = self._guests or {}, {}
        for token in tokens:
            guest = self._guests[token.digest] = known.get(token.digest) or Guest(token)
            guest.change(token)

    def admit(self, visit: Visit, now: float, today: date) -> Guest | None:
        """Whose token it is; None where nobody needs one.

        Raises UnauthorizedError, ForbiddenError, or TooManyRequestsError, which says when to try again.
        """
        guest = self._recognise(visit, today)
        if visit.origin and (visit.kind == "websocket" or visit.method not in READING):
            check_origin(
                visit.origin,
                visit.host,
                is_encrypted=visit.is_encrypted,
                is_private=self._is_private,
                allowed=self._origins,
            )
        if guest is not None:
            _check_limits(guest, visit, now)
        return guest

    def may_stay(self, guest: Guest, visit: Visit, today: date) -> bool:
        """Whether the token that a visit was let in with would still let it in."""
        is_known = self._guests is not None and self._guests.get(guest.token.digest) is guest
        needed = scopes_for(visit.kind, visit.method, visit.path) or frozenset()
        return is_known and guest.token.is_valid(today) and bool(guest.token.scopes & needed)

    def _recognise(self, visit: Visit, today: date) -> Guest | None:
        needed = scopes_for(visit.kind, visit.method, visit.path)
        if self._guests is None or needed is None:
            return None
        if not visit.secret:
            raise _unauthorized("The request has no token.")
        token = find_token((guest.token for guest in self._guests.values()), visit.secret)
        if token is None:
            raise _unauthorized("The token is not known here.")
        if not token.is_valid(today):
            raise _unauthorized(f"The token {token.name} expired on {token.expires_on}.")
        if not token.scopes & needed:
            raise _forbidden(token, needed)
        return self._guests[token.digest]


@contextmanager
def seated(guest: Guest) -> Iterator[None]:
    """A WebSocket of the guest is open."""
    guest.sockets += 1
    try:
        yield
    finally:
        guest.sockets -= 1


def _check_limits(guest: Guest, visit: Visit, now: float) -> None:
    name, limits = guest.token.name, guest.token.limits
    if visit.kind == "websocket" and limits.streams is not None and guest.sockets >= limits.streams:
        raise TooManyRequestsError(
            f"The token {name} has {guest.sockets} WebSockets open.",
            f"at most {limits.streams}",
            "Close one, or ask the service's operator for more.",
            5.0,
        )
    wait_s = guest.requests.take(now) if guest.requests is not None else 0.0
    if wait_s > 0:
        raise TooManyRequestsError(
            f"The token {name} makes too many requests.",
            f"at most {limits.requests_per_s:g} a second",
            f"Try again in {math.ceil(wait_s)} s, or ask the service's operator for more.",
            wait_s,
        )


def _make_bucket(rate: float | None) -> TokenBucket | None:
    return None if rate is None else TokenBucket(rate, max(1.0, rate * _BURST_S))


def _unauthorized(found: str) -> UnauthorizedError:
    return UnauthorizedError(
        found,
        "Authorization: Bearer and a token that is valid here",
        "Ask the service's operator for one; in a browser it is the password, with any user name.",
    )


def _forbidden(token: Token, needed: frozenset[Scope]) -> ForbiddenError:
    return ForbiddenError(
        f"The token {token.name} is for {', '.join(sorted(token.scopes))}.",
        f"one for {' or '.join(sorted(needed))}",
        "Use another token, or ask the service's operator for one.",
    )
