"""The door of the service: every request and every WebSocket passes it once, before anything else sees it.

Whoever has passed costs nothing further: messages are handed on untouched, unless the token has a limit on bytes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import math
import time
from datetime import UTC, date, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.doorkeeper import Doorkeeper, Guest, Visit, seated
from service.access.rates import TokenBucket
from service.access.scopes import Scope as TokenScope
from service.access.scopes import scopes_for
from service.access.token_file import TokenFile
from service.api.messages import answer_problem, pack_error, shorten_reason
from service.errors import (
    InvalidRequestError,
    PayloadTooLargeError,
    SurgsegError,
    TooManyRequestsError,
    UnauthorizedError,
)
from service.logs import begin_request
from service.telemetry import Telemetry

_log = logging.getLogger(__name__)
_SUBPROTOCOL = "surgseg.token."
_CHALLENGES = ('Bearer realm="surgseg"', 'Basic realm="surgseg: the token is the password", charset="UTF-8"')
_LOOK_EVERY_S = 1.0
_POLICY_VIOLATION, _TOO_BIG = 1008, 1009
_OPERATE = frozenset({TokenScope.OPERATE})


class Gate:
    """Asks the doorkeeper, and does what it says. On the event loop."""

    def __init__(self, doorkeeper: Doorkeeper, telemetry: Telemetry, tokens: TokenFile | None) -> None:
        self._doorkeeper = doorkeeper
        self._telemetry = telemetry
        self._tokens = tokens
        self._stays: dict[asyncio.Timeout, tuple[Guest, Visit]] = {}
        self._lines = TokenBucket(1.0, 20.0)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application behind this gate."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] in ("http", "websocket"):
                await self._serve(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return serve

    async def watch(self) -> None:
        """Look every second whether the file of tokens has changed, and who may not stay; ends when cancelled."""
        while self._tokens is not None:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._read_tokens(self._tokens)
            today = _today()
            for stay, (guest, visit) in list(self._stays.items()):
                if not self._doorkeeper.may_stay(guest, visit, today):
                    del self._stays[stay]
                    stay.reschedule(asyncio.get_running_loop().time())

    async def _read_tokens(self, file: TokenFile) -> None:
        try:
            tokens = await asyncio.to_thread(file.read_changed)
        except InvalidRequestError as error:
            self._telemetry.note_stale_tokens(True)
            _log.error("The tokens stay as they were, and what was revoked is still valid: %s", error)
            return
        if tokens is not None:
            self._telemetry.note_stale_tokens(False)
            self._doorkeeper.replace_tokens(tokens)
            _log.info("%s has changed: %d tokens are valid", file.path, len(tokens))

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        begin_request()
        visit = _read_visit(scope)
        try:
            guest = self._doorkeeper.admit(visit, time.monotonic(), _today())
        except SurgsegError as error:
            await self._refuse(visit, error, scope, receive, send)
            return
        if guest is None:
            await app(scope, receive, send)
            return
        if scopes_for(visit.kind, visit.method, visit.path) == _OPERATE:
            _log.info("%s: %s %s from %s", guest.token.name, visit.method, _quote(visit.path), _client(scope))
        receive = _limit(receive, send, guest)
        if visit.kind == "http":
            await app(scope, receive, send)
        else:
            await self._serve_socket(app, scope, receive, send, guest, visit)

    async def _serve_socket(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, guest: Guest, visit: Visit
    ) -> None:
        """Until it ends, or the token does."""
        stay = asyncio.timeout(None)
        self._stays[stay] = guest, visit
        with seated(guest):
            try:
                async with stay:
                    await app(scope, receive, send)
            except TimeoutError:
                if not stay.expired():
                    raise
                await _dismiss(send, guest)
            finally:
                self._stays.pop(stay, None)

    async def _refuse(
        self, visit: Visit, error: SurgsegError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._telemetry.count_refused(error.status)
        if self._lines.take(time.monotonic()) == 0.0:  # strangers must not be able to fill the disk
            _log.info(
                "refused %d %s %s from %s: %s",
                *(error.status, visit.method, _quote(visit.path), _client(scope), error.found),
            )
        headers = (
            {"Retry-After": str(math.ceil(error.retry_after_s))}
            if isinstance(error, TooManyRequestsError)
            else {}
        )
        answer = answer_problem(error, headers)
        if isinstance(error, UnauthorizedError):
            for challenge in _CHALLENGES:  # a line each: Chromium reads no further than the first of a line
                answer.headers.append("WWW-Authenticate", challenge)
        # For a WebSocket this is the answer to its handshake, which is refused with it.
        await answer(scope, receive, send)


def _read_visit(scope: Scope) -> Visit:
    """What a request says of itself; a token in a sub-protocol is taken out of the scope."""
    headers = {b"authorization": b"", b"host": b"", b"origin": b""}
    for name, value in scope["headers"]:
        if name in headers:
            headers[name] = value
    secret = _read_authorization(headers[b"authorization"].decode("latin-1"))
    if scope["type"] == "websocket":
        carried = [name for name in scope["subprotocols"] if name.startswith(_SUBPROTOCOL)]
        if carried:
            scope["subprotocols"] = [name for name in scope["subprotocols"] if name not in carried]
            secret = secret or carried[0].removeprefix(_SUBPROTOCOL)
    return Visit(
        scope["type"],
        scope.get("method", "GET"),
        scope["path"],
        host=headers[b"host"].decode("latin-1"),
        origin=headers[b"origin"].decode("latin-1"),
        is_encrypted=scope["scheme"] in ("https", "wss"),
        secret=secret,
    )


def _read_authorization(value: str) -> str:
    """The token of a Bearer header, or of a Basic one, where it is the password; empty where there is none."""
    kind, _, rest = value.partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _limit(receive: Receive, send: Send, guest: Guest) -> Receive:
    """`receive`, where the token has a limit on bytes: one that slows down, and refuses what is too large."""
    limits, bucket = guest.token.limits, guest.bytes
    if limits.max_bytes is None and bucket is None:
        return receive
    body_bytes = 0

    async def receive_limited() -> Message:
        nonlocal body_bytes
        message = await receive()
        size_bytes = len(message.get("body") or message.get("bytes") or message.get("text") or b"")
        body_bytes = size_bytes if message["type"] == "websocket.receive" else body_bytes + size_bytes
        if limits.max_bytes is not None and body_bytes > limits.max_bytes:
            return await _refuse_size(message, send, limits.max_bytes)
        if bucket is not None and (wait_s := bucket.charge(size_bytes, time.monotonic())) > 0:
            await asyncio.sleep(wait_s)  # what is not read holds the sender up, through TCP
        return message

    return receive_limited


async def _refuse_size(message: Message, send: Send, max_bytes: int) -> Message:
    error = PayloadTooLargeError(
        f"What came is larger than {max_bytes} bytes.",
        f"at most {max_bytes} with this token",
        "Send less, or ask the service's operator for more.",
    )
    if message["type"] != "websocket.receive":
        raise error
    with contextlib.suppress(OSError, RuntimeError):
        await send({"type": "websocket.close", "code": _TOO_BIG, "reason": shorten_reason(error.found)})
    return {"type": "websocket.disconnect", "code": _TOO_BIG}


async def _dismiss(send: Send, guest: Guest) -> None:
    error = UnauthorizedError(
        f"The token {guest.token.name} is not valid any more.", "a token that is", "Use its successor."
    )
    with contextlib.suppress(OSError, RuntimeError):  # it may have left in the same moment
        await send({"type": "websocket.send", "text": pack_error(error, is_fatal=True)})
        await send(
            {"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": shorten_reason(error.found)}
        )


def _today() -> date:
    return datetime.now(UTC).date()


def _client(scope: Scope) -> str:
    return str((scope.get("client") or ("nowhere",))[0])


def _quote(path: str) -> str:
    """A path as one word of a log line, whatever it holds; never its query."""
    return ascii(path[:100])
