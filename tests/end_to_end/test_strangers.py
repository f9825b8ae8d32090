"""What fuzzing has found, each on a real service: it answers, in its own form, and the log stays small and calm."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import cv2
import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from service.api.messages import PROBLEM_MEDIA_TYPE
from tests.conftest import Server

HANDSHAKE = (
    "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
PICTURE = cv2.imencode(".jpg", np.random.default_rng(3).integers(0, 256, (72, 128, 3), np.uint8))[1].tobytes()


def exchange(server: Server, data: str) -> bytes:
    """All that comes back for these bytes, until the service closes the connection."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(data.encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def check_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM_MEDIA_TYPE)
    problem: dict[str, Any] = answer.json()
    return problem


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /v1/stream HTTP/1.1\r\n" + "".join(f"X-{each}: y\r\n" for each in range(150)), b"431"),
        (f"GET /v1/stream HTTP/1.1\r\nX: {'y' * 9000}\r\n", b"431"),
        (f"GET /v1/stream?{'a' * 9000} HTTP/1.1\r\n", b"414"),
        ("GET /v1/stream HTTP/1.1\r\nContent-Length: 5\r\n", b"400"),
        ("POST /v1/stream HTTP/1.1\r\n", b"405"),
    ],
)
def test_a_handshake_that_cannot_be_read_is_answered_and_its_connection_closed(
    server: Server, head: str, status: bytes
) -> None:
    assert exchange(server, f"{head}{HANDSHAKE}\r\n").split()[1] == status


@pytest.mark.parametrize(
    "path", ["/", "/ws", "/v1/stream/", "/v1/scene/", "/v1/streams/x/masks/", "/healthz"]
)
def test_a_websocket_at_an_unknown_address_gets_404(server: Server, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught, connect(server.ws_url + path):
        pass
    answer = caught.value.response
    assert (answer.status_code, answer.headers["content-type"]) == (404, PROBLEM_MEDIA_TYPE)
    assert json.loads(answer.body or b"")["slug"] == "not-found"


@pytest.mark.parametrize("path", ["/healthz/", "/v1/model/", "/v1/", "/v1", "/docs/", "/."])
def test_nobody_is_sent_on(server: Server, path: str) -> None:
    answer = exchange(server, f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert answer.split()[1] == b"404"
    assert b"evil.example" not in answer


@pytest.mark.parametrize(
    "odd",
    [
        "bytes=-0",
        "bytes=5-2",
        "bytes=a-b",
        "bytes=99999-",
        "bytes=+0-+5",
        "lines=1-2",
        "bytes=" + "0-1," * 200,
    ],
)
def test_files_come_whole_whatever_range_is_asked_for(server: Server, odd: str) -> None:
    whole = httpx.get(f"{server.url}/viewer.js")
    answer = httpx.get(f"{server.url}/viewer.js", headers={"Range": odd})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert answer.headers["accept-ranges"] == "none"


def test_what_is_sent_at_length_comes_back_short(server: Server) -> None:
    for address in (f"/v1/streams/{'%41' * 5000}", f"/v1/{'a' * 9000}", f"/{'b' * 9000}"):
        assert len(json.dumps(check_problem(httpx.get(server.url + address), 404))) < 2500
    answer = httpx.post(f"{server.url}/v1/segment", params={"mask": "x" * 9000}, content=PICTURE)
    assert len(json.dumps(check_problem(answer, 400))) < 2500


def test_a_number_in_an_order_is_a_number(server: Server) -> None:
    for odd in ('"5"', '"+5"', '"1_0"', "true"):
        answer = httpx.post(f"{server.url}/v1/streams", content=f'{{"url": "file:x", "priority": {odd}}}')
        assert "priority" in check_problem(answer, 400)["found"]


@pytest.mark.parametrize("name", ["priority", "fps", "width", "deadline_ms"])
@pytest.mark.parametrize("odd", ["%2B5", "1_0", "%205", "%D9%A5", "5e0"])
def test_a_number_in_an_address_is_a_plain_one(server: Server, name: str, odd: str) -> None:
    with connect(f"{server.ws_url}/v1/stream?{name}={odd}") as connection:
        assert json.loads(connection.recv(timeout=30))["slug"] == "invalid-request"
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=30)
        assert connection.close_code == 1008


def test_the_log_stays_small_and_calm(launch_server: Callable[..., Server]) -> None:
    """Text that is no UTF-8, frames of an unknown kind amid others, what is no HTTP, pictures with damage inside."""
    server = launch_server(SURGSEG_LOG_FORMAT="json")
    for raw, code in ((b"\x81\x82\0\0\0\0\xff\xfe", 1007), (b"\x83\x81\0\0\0\0?", 1002)):
        for _ in range(10):
            with connect(f"{server.ws_url}/v1/stream") as connection:
                for _ in range(3):
                    connection.send(
                        "text is refused, and the answers are under way when the connection breaks"
                    )
                connection.socket.sendall(raw)
                with pytest.raises(ConnectionClosed):
                    while True:
                        connection.recv(timeout=30)
                assert connection.close_code == code
    for number in range(60):
        exchange(server, "no HTTP\r\n\r\n")
        damaged = PICTURE[: 700 + number] + b"\xff\xd9\0\xff" + PICTURE[700 + number :]
        httpx.post(f"{server.url}/v1/segment", content=damaged, timeout=30)
    time.sleep(0.3)
    lines = [json.loads(line) for line in server.output]
    assert not [line for line in lines if "traceback" in line or line["level"] in ("error", "critical")]
    assert sum("Invalid" in line["message"] for line in lines) <= 30
    said = [line for line in lines if "a library says" in line["message"]]
    assert 1 <= len(said) <= 30
