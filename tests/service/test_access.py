"""Who is let in: scopes, origins, limits, and the doorkeeper that joins them."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from service.access.doorkeeper import Doorkeeper, Visit, seated
from service.access.origins import check_origin, is_loopback
from service.access.rates import TokenBucket
from service.access.scopes import Scope, scopes_for
from service.access.tokens import Limits, Token, hash_secret
from service.errors import ForbiddenError, TooManyRequestsError, UnauthorizedError

TODAY = date(2026, 7, 1)
PUSH, VIEW, OPERATE = ({scope} for scope in (Scope.PUSH, Scope.VIEW, Scope.OPERATE))


def make_token(secret: str, *scopes: Scope, **options: Any) -> Token:
    return Token(secret, frozenset(scopes), hash_secret(secret), **options)


def visit(kind: Any = "http", path: str = "/metrics", method: str = "GET", **options: Any) -> Visit:
    return Visit(kind, method, path, **options)


@pytest.mark.parametrize(
    ("kind", "method", "path", "needed"),
    [
        ("http", "GET", "/healthz", None),
        ("http", "HEAD", "/healthz", None),
        ("http", "POST", "/healthz", OPERATE),
        ("http", "GET", "/healthz/", set(Scope)),
        ("http", "GET", "/healthz/../metrics", set(Scope)),
        ("http", "GET", "/readyz", set(Scope)),
        ("http", "GET", "/", set(Scope)),
        ("http", "GET", "/v1/model", set(Scope)),
        ("http", "POST", "/v1/model", OPERATE),
        ("http", "POST", "/v1/segment", PUSH),
        ("http", "PUT", "/v1/segment", OPERATE),
        ("http", "GET", "/v1/segment", VIEW),
        ("websocket", "GET", "/v1/stream", PUSH),
        ("http", "GET", "/v1/stream", VIEW),
        ("websocket", "GET", "/v1/streams/a/masks", VIEW),
        ("websocket", "GET", "/v1/scene", VIEW),
        ("http", "GET", "/v1/streams", VIEW),
        ("http", "GET", "/metrics", VIEW),
        ("http", "POST", "/v1/streams", OPERATE),
        ("http", "DELETE", "/v1/streams/a", OPERATE),
        ("http", "OPTIONS", "/v1/streams", OPERATE),
        ("http", "BREW", "/coffee", OPERATE),
        ("http", "GET", "/v1/not-yet-invented", VIEW),
        ("http", "POST", "/v1/not-yet-invented", OPERATE),
    ],
)
def test_what_needs_which_scope(kind: Any, method: str, path: str, needed: set[Scope] | None) -> None:
    assert scopes_for(kind, method, path) == needed


@given(
    rate=some.floats(0.1, 1000),
    burst=some.floats(1, 100),
    gaps=some.lists(some.floats(0, 3), min_size=1, max_size=60),
)
def test_a_bucket_never_lets_more_through_than_its_rate_and_one_burst(
    rate: float, burst: float, gaps: list[float]
) -> None:
    bucket, now = TokenBucket(rate, burst), 100.0
    for taken, gap in enumerate(gaps, 1):
        now += gap
        wait_s = bucket.take(now)
        if wait_s > 0:
            assert bucket.take(now) == pytest.approx(wait_s)
            now += wait_s * 1.001
            assert bucket.take(now) == 0.0
        assert taken <= burst + rate * (now - 100.0) + 1e-6


@given(rate=some.floats(1, 1e9), sizes=some.lists(some.integers(0, 10**9), min_size=1, max_size=30))
def test_whoever_waits_as_long_as_told_sends_at_the_rate(rate: float, sizes: list[int]) -> None:
    bucket, now = TokenBucket(rate, rate), 5.0
    for size in sizes:
        now += bucket.charge(size, now)
    assert sum(sizes) <= rate * (now - 5.0) + rate * 1.001 + 1.0


def test_a_clock_that_steps_back_gives_nothing() -> None:
    bucket = TokenBucket(1.0, 1.0)
    assert bucket.take(10.0) == 0.0
    assert bucket.take(5.0) == 1.0
    assert bucket.take(5.5) == 0.5


@pytest.mark.parametrize(
    ("origin", "host", "options", "is_let_in"),
    [
        ("http://surgseg:8000", "surgseg:8000", {}, True),
        ("https://surgseg", "SURGSEG", {}, True),
        ("https://SURGSEG", "surgseg", {"is_encrypted": True}, True),
        ("http://surgseg", "surgseg", {"is_encrypted": True}, False),
        ("http://surgseg:8001", "surgseg:8000", {}, False),
        ("http://evil", "surgseg", {}, False),
        ("http://evil", "surgseg", {"allowed": {"http://evil"}}, True),
        ("http://surgseg.evil", "surgseg", {}, False),
        ("ftp://surgseg", "surgseg", {}, False),
        ("null", "surgseg", {}, False),
        ("null", "", {}, False),
        ("http://", "", {}, False),
        ("http://[::1", "[::1", {}, False),
        ("http://[::1]:8000", "[::1]:8000", {"is_private": True}, True),
        ("http://localhost:8000", "localhost:8000", {"is_private": True}, True),
        ("http://evil:8000", "evil:8000", {"is_private": True}, False),
        ("http://evil:8000", "evil:8000", {"is_private": True, "allowed": {"http://evil:8000"}}, True),
    ],
)
def test_pages_of_other_origins_are_kept_out(
    origin: str, host: str, options: dict[str, Any], is_let_in: bool
) -> None:
    options = {"is_encrypted": False, "is_private": False, "allowed": set()} | options
    if is_let_in:
        check_origin(origin, host, **options)
        return
    with pytest.raises(ForbiddenError, match="SURGSEG_ORIGINS"):
        check_origin(origin, host, **options)


def test_what_is_this_machine_alone() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.0.1", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.7", "surgseg", "127.0.0.1.evil", "")))


def test_without_tokens_everybody_is_let_in_but_strange_pages_are_not() -> None:
    doorkeeper = Doorkeeper(None)
    assert doorkeeper.admit(visit(), 0.0, TODAY) is None
    page = {"host": "localhost:1", "origin": "http://evil"}
    assert doorkeeper.admit(visit(**page), 0.0, TODAY) is None
    for kind, method in (("websocket", "GET"), ("http", "POST"), ("http", "DELETE")):
        with pytest.raises(ForbiddenError):
            doorkeeper.admit(visit(kind, method=method, **page), 0.0, TODAY)
    rebound = visit("websocket", host="evil:1", origin="http://evil:1")
    with pytest.raises(ForbiddenError):
        doorkeeper.admit(rebound, 0.0, TODAY)
    assert Doorkeeper(None, is_private=False).admit(rebound, 0.0, TODAY) is None


def test_a_token_opens_what_its_scopes_are_for() -> None:
    pusher, old = make_token("p", Scope.PUSH), make_token("o", *Scope, expires_on=date(2026, 6, 30))
    doorkeeper = Doorkeeper([pusher, old])
    assert doorkeeper.admit(visit(path="/healthz"), 0.0, TODAY) is None
    guest = doorkeeper.admit(visit("websocket", "/v1/stream", secret="p"), 0.0, TODAY)
    assert guest is not None
    assert guest.token is pusher
    for secret, why in (("", "no token"), ("q", "not known"), ("o", "expired on 2026-06-30")):
        with pytest.raises(UnauthorizedError, match=why):
            doorkeeper.admit(visit(secret=secret), 0.0, TODAY)
    with pytest.raises(ForbiddenError, match=r"is for push\. Expected one for view"):
        doorkeeper.admit(visit(secret="p"), 0.0, TODAY)


def test_whoever_has_no_token_learns_nothing_about_origins() -> None:
    doorkeeper = Doorkeeper([make_token("v", Scope.VIEW)])
    stranger = visit("websocket", "/v1/scene", origin="http://evil", host="surgseg")
    with pytest.raises(UnauthorizedError):
        doorkeeper.admit(stranger, 0.0, TODAY)
    with pytest.raises(ForbiddenError):
        doorkeeper.admit(
            visit("websocket", "/v1/scene", origin="http://evil", host="a", secret="v"), 0.0, TODAY
        )


def test_limits_are_a_tokens_own() -> None:
    limited = make_token("l", Scope.VIEW, limits=Limits(requests_per_s=2.0, streams=1))
    doorkeeper = Doorkeeper([limited, make_token("f", Scope.VIEW)])
    for _ in range(2):
        guest = doorkeeper.admit(visit(secret="l"), 10.0, TODAY)
    assert guest is not None
    with pytest.raises(TooManyRequestsError) as caught:
        doorkeeper.admit(visit(secret="l"), 10.1, TODAY)
    assert caught.value.retry_after_s == pytest.approx(0.4)
    doorkeeper.admit(visit(secret="f"), 10.1, TODAY)
    with seated(guest):
        doorkeeper.admit(visit(secret="l"), 11.0, TODAY)
        with pytest.raises(TooManyRequestsError, match="1 WebSockets open"):
            doorkeeper.admit(visit("websocket", "/v1/scene", secret="l"), 12.0, TODAY)
    doorkeeper.admit(visit("websocket", "/v1/scene", secret="l"), 12.0, TODAY)


def test_a_changed_file_revokes_and_forgets_no_use_of_limits() -> None:
    stays, goes = make_token("s", Scope.VIEW, limits=Limits(requests_per_s=1.0)), make_token("g", Scope.VIEW)
    doorkeeper = Doorkeeper([stays, goes])
    guests = [doorkeeper.admit(visit(secret=secret), 0.0, TODAY) for secret in "sg"]
    doorkeeper.replace_tokens([make_token("n", Scope.VIEW), stays])
    assert [doorkeeper.may_stay(guest, visit(), TODAY) for guest in guests if guest] == [True, False]
    doorkeeper.admit(visit(secret="n"), 0.0, TODAY)
    with pytest.raises(UnauthorizedError):
        doorkeeper.admit(visit(secret="g"), 0.0, TODAY)
    with pytest.raises(TooManyRequestsError):
        doorkeeper.admit(visit(secret="s"), 0.0, TODAY)


def test_an_open_stream_outlives_a_change_of_its_line_unless_it_takes_the_scope() -> None:
    doorkeeper = Doorkeeper([make_token("s", Scope.VIEW, Scope.PUSH, expires_on=TODAY)])
    guest = doorkeeper.admit(visit(secret="s"), 0.0, TODAY)
    assert guest is not None
    with seated(guest):
        assert doorkeeper.may_stay(guest, visit(), TODAY)
        assert not doorkeeper.may_stay(guest, visit(), date(2026, 7, 2))
        doorkeeper.replace_tokens([make_token("s", Scope.VIEW, limits=Limits(streams=1))])
        assert doorkeeper.may_stay(guest, visit(), date(2026, 7, 2))
        with pytest.raises(TooManyRequestsError, match="1 WebSockets"):
            doorkeeper.admit(visit("websocket", "/v1/scene", secret="s"), 0.0, TODAY)
        assert not doorkeeper.may_stay(guest, visit("websocket", "/v1/stream"), TODAY)
        doorkeeper.replace_tokens([make_token("s", Scope.PUSH)])
        assert not doorkeeper.may_stay(guest, visit(), TODAY)


def test_a_visit_does_not_show_its_token() -> None:
    assert "secret-text" not in repr(visit(secret="secret-text"))
