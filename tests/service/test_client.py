"""The client against servers that misbehave: whatever they do, one clear error and no hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from service.client import Client
from service.contract.masks import to_png
from service.errors import (
    InvalidRequestError,
    StreamError,
    SurgsegError,
    UnavailableError,
)
from service.wire import MaskHeader, describe_error, pack_event, pack_mask, unpack_frame

Handler = Callable[[ServerConnection], None]
PICTURE = np.zeros((8, 8, 3), np.uint8)
READY = pack_event("ready", protocol_version=1)


@contextmanager
def web_socket_server(handler: Handler, **options: Any) -> Iterator[str]:
    """A real server on a free port that runs `handler` for each connection."""
    with serve(handler, "127.0.0.1", 0, **options) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}"
        finally:
            running.shutdown()
            thread.join(10)


@contextmanager
def http_server(status: int, media_type: str, body: bytes) -> Iterator[str]:
    """A real server on a free port that gives every request the same answer."""

    class Fixed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            self.send_header("content-type", media_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name is http.server's

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Fixed) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join(10)


def answer(sequence: int, captured_at_us: int = 0) -> bytes:
    header = MaskHeader(
        sequence, captured_at_us, None, 8, 8, "png", {"infer": 1.0}, {}, sequence, 0, "0123456789ab"
    )
    return pack_mask(header, to_png(np.full((4, 4), sequence % 256, np.uint8)))


def until_closed(connection: ServerConnection) -> None:
    try:
        while True:
            connection.recv()
    except ConnectionClosed:
        pass


@pytest.mark.parametrize("message", [b"", b"\0\0\0\xff{}", answer(1)[:-20], "{}", "not json", b"\0\0\0\2[]"])
def test_a_message_of_another_protocol_ends_the_stream_with_one_error(message: bytes | str) -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        connection.send(message)
        until_closed(connection)

    with web_socket_server(speak) as url, Client(url) as client, client.stream() as stream:
        with pytest.raises(StreamError):
            next(iter(stream))
        with pytest.raises(StreamError):
            stream.push(PICTURE)


@pytest.mark.parametrize("first", [b"binary", "no json", pack_event("notice", detail="?"), answer(1)])
def test_a_server_that_does_not_begin_with_ready_is_refused(first: bytes | str) -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(first)
        until_closed(connection)

    with web_socket_server(speak) as url, Client(url) as client, pytest.raises(StreamError):
        client.stream()


def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    with (
        web_socket_server(until_closed) as url,
        Client(url, timeout_s=0.3) as client,
        pytest.raises(UnavailableError, match="ready"),
    ):
        client.stream()


def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        until_closed(connection)

    with web_socket_server(speak) as url, Client(url, timeout_s=0.3) as client:
        with client.stream(mode="every") as stream, pytest.raises(StreamError, match="unanswered"):
            stream.push(PICTURE)
            list(stream.finish())
        with client.stream(mode="every") as stream, pytest.raises(StreamError, match="unanswered"):
            for _ in range(100):
                stream.push(PICTURE)


def test_a_fatal_error_event_is_raised_as_the_error_it_names() -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        error = UnavailableError("The engine is gone.", "an engine", "Restart.")
        connection.send(pack_event("error", **describe_error(error), fatal=True))
        connection.close(1011)

    with (
        web_socket_server(speak) as url,
        Client(url) as client,
        client.stream() as stream,
        pytest.raises(UnavailableError, match="The engine is gone"),
    ):
        next(iter(stream))


def test_masks_that_came_before_the_end_can_still_be_read() -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        for sequence in range(1, 4):
            connection.send(answer(sequence))
        connection.socket.close()

    with web_socket_server(speak) as url, Client(url) as client, client.stream() as stream:
        read = []
        with pytest.raises(StreamError, match="lost"):
            for message in stream:
                read.append(message)
        assert [message.sequence for message in read] == [1, 2, 3]


def test_a_normal_end_by_the_server_ends_the_iteration() -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        connection.send(answer(1))
        connection.close(1000)

    with web_socket_server(speak) as url, Client(url) as client, client.stream() as stream:
        assert [message.sequence for message in stream] == [1]


def test_a_reader_who_is_away_keeps_the_newest_masks_and_the_rest_is_counted() -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        for sequence in range(1, 101):
            connection.send(answer(sequence))
        until_closed(connection)

    with web_socket_server(speak) as url, Client(url) as client, client.stream(capacity=8) as stream:
        ends_at = time.monotonic() + 20
        while stream.unread < 92 and time.monotonic() < ends_at:
            time.sleep(0.01)
        assert [message.sequence for message in stream.arrived()] == list(range(93, 101))
        assert stream.unread == 92


def test_a_message_tells_when_it_came_and_brings_its_mask() -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        frame = unpack_frame(bytes(connection.recv()))
        connection.send(answer(1, frame.captured_at_us))
        until_closed(connection)

    with web_socket_server(speak) as url, Client(url) as client, client.stream() as stream:
        pushed_at = time.monotonic()
        stamp_us = stream.push(PICTURE)
        message = next(iter(stream))
    assert message.captured_at_us == stamp_us
    assert pushed_at <= stamp_us / 1e6 <= message.arrived_at <= time.monotonic()
    assert (message.width, message.height, message.mask) == (8, 8, "png")
    assert np.array_equal(message.mask_hw, np.ones((4, 4), np.uint8))


def test_events_go_to_the_callback() -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        connection.send(pack_event("notice", detail="The light is low."))
        connection.close(1000)

    events: list[dict[str, Any]] = []
    with (
        web_socket_server(speak) as url,
        Client(url) as client,
        client.stream(on_event=events.append) as stream,
    ):
        assert list(stream) == []
    assert events == [{"type": "notice", "detail": "The light is low."}]


def test_closing_while_another_thread_reads_ends_its_iteration() -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        until_closed(connection)

    with web_socket_server(speak) as url, Client(url) as client, client.stream() as stream:
        read: list[Any] = []
        reader = threading.Thread(target=lambda: read.extend(stream))
        reader.start()
        time.sleep(0.1)
        stream.close()
        reader.join(10)
        assert not reader.is_alive()
        assert read == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (
            '{"slug": "unavailable", "found": "Full.", "expected": "room", "remedy": "Wait."}',
            UnavailableError,
        ),
        ("<html>Bad gateway</html>", UnavailableError),
    ],
)
def test_a_refused_handshake_is_one_clear_error(body: str, kind: type[SurgsegError]) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(503, body)

    with (
        web_socket_server(until_closed, process_request=refuse) as url,
        Client(url) as client,
        pytest.raises(kind, match=r"Full|HTTP 503"),
    ):
        client.stream()


@pytest.mark.parametrize(
    ("status", "media_type", "body"),
    [
        (200, "text/html", b"<html>a login page</html>"),
        (502, "text/html", b"<html>Bad gateway</html>"),
        (404, "application/json", b"[1, 2]"),
        (200, "image/png", b""),
    ],
)
def test_an_answer_that_is_not_ours_is_one_clear_error(status: int, media_type: str, body: bytes) -> None:
    with http_server(status, media_type, body) as url, Client(url) as client:
        with pytest.raises(SurgsegError, match="surgseg"):
            client.segment(PICTURE)
        with pytest.raises(SurgsegError, match="surgseg"):
            client.model()


def test_a_capacity_below_one_is_refused() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidRequestError, match="capacity"):
        client.stream(capacity=0)
