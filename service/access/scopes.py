"""Which scope a request needs. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Kind = Literal["http", "websocket"]


class Scope(StrEnum):
    """What a token is for. None includes another: a token lists each that it has."""

    PUSH = "push"
    VIEW = "view"
    OPERATE = "operate"


ANY = frozenset(Scope)
READING = frozenset({"GET", "HEAD"})
_PUSHED = {("http", "/v1/segment"), ("websocket", "/v1/stream")}


def scopes_for(kind: Kind, method: str, path: str) -> frozenset[Scope] | None:
    """The scopes of which a token needs one; None where nobody needs a token.

    `path` is decoded, as the router sees it; `method` counts for HTTP only. What is not known here needs `operate`,
    so that an address which somebody forgets is not open.
    """
    is_reading = kind == "websocket" or method in READING
    if path == "/healthz":
        return None if is_reading else frozenset({Scope.OPERATE})
    if (kind, path) in _PUSHED and (kind == "websocket" or method == "POST"):
        return frozenset({Scope.PUSH})
    if not is_reading:
        return frozenset({Scope.OPERATE})
    if path == "/metrics" or (path.startswith("/v1/") and path != "/v1/model"):
        return frozenset({Scope.VIEW})
    return ANY
