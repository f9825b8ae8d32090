"""What is wrong with an answer to a fuzzed request, or with what came over a fuzzed WebSocket: the judgement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import jsonschema

from service.access.scopes import Scope, scopes_for
from tests.soak.fuzzing_site import HOLDERS

PROBLEM = "application/problem+json"
MOST_PROBLEM_BYTES = 6000
MOST_LINE_CHARACTERS = 3000
_FAILED = 1011
_ENDED = 1006
FATAL = ("bad frame", "giant")
NOT_FOR_US = (b"Invalid HTTP request received.", b"Failed to open a WebSocket connection")


@dataclass(frozen=True)
class HttpAnswer:
    """`status` is 0 where none came, and `body` then says why; header names are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class SocketAnswer:
    """The answer to a handshake, and where it was accepted what came then, up to the close code."""

    handshake: HttpAnswer
    received: list[str | bytes] = field(default_factory=list)
    close_code: int | None = None


class HttpJudge:
    """Holds answers against an OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def find_faults(self, request: Any, answer: HttpAnswer) -> list[str]:
        """What is wrong with the answer, in words; nothing where it is as the document says."""
        if answer.status == 0:
            return [] if request.kind == "mangled" else [f"no answer: {answer.body.decode()}"]
        faults = _judge_status(answer)
        # what is no HTTP is answered below the service, where nobody knows of tokens or problem documents
        if request.kind == "mangled" or _is_below_us(request, answer):
            return faults
        if answer.status >= 400 and request.method != "HEAD":
            faults += self.judge_problem(answer)
        faults += _judge_access(request, answer)
        if request.operation != "other":
            faults += self._judge_documented(request, answer)
        return faults

    def judge_problem(self, answer: HttpAnswer) -> list[str]:
        if answer.headers.get("content-type") != PROBLEM:
            return [f"{answer.status} is no problem document but {answer.headers.get('content-type')}"]
        if len(answer.body) > MOST_PROBLEM_BYTES:
            return [f"a problem document of {len(answer.body)} bytes"]
        try:
            problem = json.loads(answer.body)
        except ValueError:
            return ["a problem document that is not JSON"]
        faults = check(self._document, "Problem", problem)
        return (
            faults
            if faults or problem["status"] == answer.status
            else ["a problem document of another status"]
        )

    def _judge_documented(self, request: Any, answer: HttpAnswer) -> list[str]:
        method, _, path = request.operation.partition(" ")
        responses = self._document["paths"][path][method.lower()]["responses"]
        named = responses.get(str(answer.status)) or responses.get(f"{answer.status // 100}XX")
        if named is None:
            # a request whose method was spoilt is answered for that method
            return [] if request.method != method else [f"{answer.status} is not in the document"]
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        content = named.get("content", {})
        if answer.body and content and media_type not in content:
            return [f"{answer.status} is {media_type}, which is not in the document"]
        schema = content.get(media_type, {}).get("schema")
        if schema is None or media_type != "application/json":
            return []
        return check_schema(self._document, schema, json.loads(answer.body))


class SocketJudge:
    """Holds what came over WebSockets against the AsyncAPI document."""

    def __init__(self, document: dict[str, Any], http: HttpJudge) -> None:
        self._document, self._http = document, http
        self._codes = set(document["x-close-codes"]) - {_FAILED}

    def find_faults(self, socket: Any, answer: SocketAnswer) -> list[str]:
        """What is wrong, in words."""
        if answer.handshake.status != 101:
            return self._judge_refusal(socket, answer.handshake)
        faults = [fault for message in answer.received for fault in self._judge_message(socket, message)]
        faults += self._judge_opening(socket, answer)
        has_failed = answer.close_code == _FAILED and _ends_with_failure(answer.received)
        # who breaks the protocol may lose the reason, for the service closes while more is on its way: such is TCP
        is_lost = answer.close_code == _ENDED and any(kind in FATAL for kind, _ in socket.messages)
        if answer.close_code not in self._codes and not has_failed and not is_lost:
            faults.append(f"closed with {answer.close_code}")
        return faults

    def _judge_refusal(self, socket: Any, answer: HttpAnswer) -> list[str]:
        if answer.status == 0:
            return [f"no handshake: {answer.body.decode()}"]
        faults = _judge_status(answer) + self._http.judge_problem(answer)
        expected = _expect_handshake(socket)
        return [*faults, *([] if answer.status == expected else [f"{answer.status} instead of {expected}"])]

    def _judge_opening(self, socket: Any, answer: SocketAnswer) -> list[str]:
        if _expect_handshake(socket) != 101:
            return [f"{socket.holder} was let in"]
        if not answer.received:
            return [] if socket.channel == "scene" and socket.kind == "valid" else ["nothing came"]
        first = answer.received[0]
        kind = "frame" if isinstance(first, bytes) else json.loads(first)
        is_refused = kind != "frame" and kind["type"] == "error"
        if socket.kind == "invalid":
            is_right = (
                is_refused and kind["slug"] in ("invalid-request", "not-found") and answer.close_code == 1008
            )
            return [] if is_right else [f"an invalid opening got {first[:200]!r} and {answer.close_code}"]
        # a stream may have been closed by then, and the service may be full
        may_fail = is_refused and (kind["slug"] == "unavailable" or socket.channel == "masks")
        return [f"a valid opening got {first[:200]!r}"] if is_refused and not may_fail else []

    def _judge_message(self, socket: Any, message: str | bytes) -> list[str]:
        if isinstance(message, str):
            event = json.loads(message)
            return check(self._document, event["type"], event)
        if socket.channel == "scene":
            return [] if len(message) > 8 else ["an empty picture"]
        size = int.from_bytes(message[:4], "big")
        return check(self._document, "maskHeader", json.loads(message[4 : 4 + size]))


def _ends_with_failure(received: list[str | bytes]) -> bool:
    """Whether the last that came says that the stream has failed, which is of its own doing."""
    last = received[-1] if received else b""
    return isinstance(last, str) and json.loads(last).get("slug") == "stream-failed"


def check(document: dict[str, Any], name: str, value: dict[str, Any]) -> list[str]:
    """Hold a value against components/schemas/NAME, and let no field pass that the document does not name."""
    unnamed = set(value) - set(document["components"]["schemas"][name]["properties"])
    faults = check_schema(document, {"$ref": f"#/components/schemas/{name}"}, value)
    return faults + ([f"{name} has fields that the document does not name: {unnamed}"] if unnamed else [])


def check_schema(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    """What of the value is not as the schema says."""
    whole = {**schema, "components": document["components"]}
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(whole).iter_errors(value))
    return [] if error is None else [f"not as the document says: {error.message[:200]}"]


def _expect_handshake(socket: Any) -> int:
    path = unquote(socket.target.partition("?")[0])
    needed = scopes_for("websocket", "GET", path)
    if needed is not None and socket.holder == "nobody":
        return 401
    if needed is not None and not needed & set(HOLDERS[socket.holder]):
        return 403
    return 404 if socket.channel == "unknown" else 101


def _is_below_us(request: Any, answer: HttpAnswer) -> bool:
    is_plain = 400 <= answer.status < 500 and answer.headers.get("content-type", "text/plain").startswith(
        "text/plain"
    )
    return answer.body.startswith(NOT_FOR_US) or (is_plain and not answer.body)


def _judge_status(answer: HttpAnswer) -> list[str]:
    if answer.status >= 500 and not (
        answer.status == 503 and answer.headers.get("retry-after", "").isdigit()
    ):
        return [f"{answer.status}: {answer.body[:200]!r}"]
    if answer.status in (301, 302, 303, 307, 308):
        return [f"redirected to {answer.headers.get('location')!r}"]
    return []


def _judge_access(request: Any, answer: HttpAnswer) -> list[str]:
    """Without a token 401, with one of another scope 403, whatever else is wrong with the request."""
    path = request.target.partition("?")[0]
    if "%" in path or not path.startswith("/") or not path.isascii():
        return [] if answer.status >= 400 or request.holder != "nobody" else ["served without a token"]
    needed = scopes_for("http", request.method, path)
    if needed is None:
        return []
    expected = 401 if request.holder == "nobody" else 403
    is_let_in = bool(needed & frozenset[Scope](HOLDERS[request.holder]))
    if not is_let_in and answer.status != expected:
        return [f"{request.holder} got {answer.status} where {expected} belongs"]
    return ["a token that is valid was not known"] if is_let_in and answer.status == 401 else []
