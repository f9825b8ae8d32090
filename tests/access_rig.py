"""Tokens for every purpose, and what each address of the service needs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.access.scopes import ANY, Scope
from service.access.tokens import Limits, Token, hash_secret, make_secret
from tests.conftest import REPOSITORY, Server

PICTURE = cv2.imencode(".jpg", np.full((72, 128, 3), 200, np.uint8))[1].tobytes()
NAMES: dict[str, tuple[tuple[Scope, ...], Limits]] = {
    "pusher": ((Scope.PUSH,), Limits()),
    "viewer": ((Scope.VIEW,), Limits()),
    "operator": ((Scope.OPERATE,), Limits()),
    "everything": (tuple(Scope), Limits()),
    "leaver": ((Scope.PUSH,), Limits()),
    "hasty": ((Scope.VIEW,), Limits(requests_per_s=0.2)),
    "single": ((Scope.PUSH,), Limits(streams=1)),
    "small": ((Scope.PUSH,), Limits(max_bytes=2000)),
    "slow": ((Scope.PUSH,), Limits(bytes_per_s=20_000)),
}
SECRETS = {name: make_secret() for name in NAMES}
HTTP = {
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): ANY,
    ("GET", "/"): ANY,
    ("GET", "/docs"): ANY,
    ("GET", "/openapi.json"): ANY,
    ("GET", "/viewer.js"): ANY,
    ("GET", "/v1/model"): ANY,
    ("GET", "/metrics"): {Scope.VIEW},
    ("GET", "/v1/streams"): {Scope.VIEW},
    ("GET", "/v1/streams/none"): {Scope.VIEW},
    ("POST", "/v1/segment"): {Scope.PUSH},
    ("POST", "/v1/streams"): {Scope.OPERATE},
    ("DELETE", "/v1/streams/none"): {Scope.OPERATE},
    ("POST", "/v1/model/rollback"): {Scope.OPERATE},
    ("POST", "/v1/model"): {Scope.OPERATE},
}
SOCKETS = {
    "/v1/stream": {Scope.PUSH},
    "/v1/streams/none/masks": {Scope.VIEW},
    "/v1/scene?width=128&height=64": {Scope.VIEW},
}


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


def make_token(name: str) -> Token:
    scopes, limits = NAMES[name]
    return Token(name, frozenset(scopes), hash_secret(SECRETS[name]), limits=limits)


def open_socket(server: Server, path: str, **options: Any) -> ClientConnection:
    return connect(server.ws_url + path, open_timeout=30, close_timeout=1, **options)


def refuse(server: Server, path: str, **options: Any) -> Any:
    """The answer to a handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught, open_socket(server, path, **options):
        pass
    return caught.value.response


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def wait_until(is_so: Callable[[], bool], timeout_s: float = 15.0) -> None:
    gives_up_at = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < gives_up_at, "it did not come about in time"
        time.sleep(0.1)


def metric(server: Server, line: str) -> float:
    text = httpx.get(f"{server.url}/metrics", headers=bearer("viewer")).text
    return float(next(each for each in text.splitlines() if each.startswith(line)).split()[-1])
