"""Sends fuzzed requests and messages to a running service and gives what came back."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from tests.soak.fuzz_answers import FATAL, HttpAnswer, SocketAnswer
from tests.soak.fuzzed_messages import FuzzedSocket
from tests.soak.fuzzed_requests import HOST, OPEN_STREAM, FuzzedRequest
from tests.soak.fuzzing_site import Site

_WAIT_S = 120.0
_QUIET_S = 0.15
_MOST_READ = 12
_MOST_KEPT = 1000


class Sender:
    """Any thread may send. Remembers the streams that were opened, for requests that want one."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._address = urlsplit(site.server.url)
        self._lock = threading.Lock()
        self._streams: list[str] = []

    def request(self, request: FuzzedRequest) -> HttpAnswer:
        """One request over a connection of its own."""
        data = self._fill_in(request.data)
        # a mangled one may have lost its end, for which the service waits
        wait_s = _QUIET_S if request.kind == "mangled" else _WAIT_S
        try:
            with socket.create_connection((self._address.hostname, self._address.port), wait_s) as connection:
                connection.sendall(data)
                with http.client.HTTPResponse(connection, method=request.method) as response:
                    response.begin()
                    headers = {name.lower(): value for name, value in response.getheaders()}
                    answer = HttpAnswer(response.status, headers, response.read())
        except (OSError, http.client.HTTPException) as error:
            return HttpAnswer(0, {}, repr(error).encode())
        if request.operation == "POST /v1/streams" and answer.status == 201:
            self._remember(json.loads(answer.body)["id"])
        return answer

    def speak(self, fuzzed: FuzzedSocket) -> SocketAnswer:
        """One WebSocket from its handshake to its end."""
        target = self._fill_in(fuzzed.target.encode()).decode()
        token = self._site.secrets[fuzzed.holder]
        headers = {} if fuzzed.holder == "nobody" else {"Authorization": f"Bearer {token}"}
        url = self._site.server.ws_url + target
        try:
            with connect(
                url, additional_headers=headers, open_timeout=_WAIT_S, close_timeout=5
            ) as connection:
                return _talk(connection, fuzzed)
        except InvalidStatus as error:
            refused = error.response
            found = {name.lower(): value for name, value in refused.headers.raw_items()}
            return SocketAnswer(HttpAnswer(refused.status_code, found, refused.body or b""))
        except (WebSocketException, OSError, TimeoutError) as error:
            return SocketAnswer(HttpAnswer(0, {}, repr(error).encode()))

    def close_streams(self) -> None:
        """Close every stream that was opened, so that the next requests find room."""
        with self._lock:
            streams, self._streams = self._streams, []
        for stream in streams:
            lines = f"DELETE /v1/streams/{stream} HTTP/1.1\r\nHost: {HOST.decode()}\r\nConnection: close\r\n"
            data = f"{lines}Authorization: Bearer {self._site.secrets['all']}\r\n\r\n".encode()
            self.request(FuzzedRequest("closing", "", "all", "DELETE", f"/v1/streams/{stream}", data))

    def _remember(self, stream: str) -> None:
        with self._lock:
            self._streams.append(stream)

    def _fill_in(self, data: bytes) -> bytes:
        with self._lock:
            stream = self._streams[-1] if self._streams else "stream-1"
        return data.replace(HOST, self._address.netloc.encode()).replace(
            OPEN_STREAM.encode(), stream.encode()
        )


def _talk(connection: ClientConnection, fuzzed: FuzzedSocket) -> SocketAnswer:
    answer = SocketAnswer(HttpAnswer(101, {}, b""))
    try:
        answer.received += _read(connection, _WAIT_S, 1)
        for kind, message in fuzzed.messages:
            if isinstance(message, tuple):
                connection.socket.sendall(message[0])
            else:
                connection.send(message)
            if kind in FATAL:  # whoever sends on while the service closes may lose its reason: such is TCP
                answer.received += _read(connection, _QUIET_S, _MOST_READ)
        answer.received += _read(connection, _QUIET_S, _MOST_READ)
    except (
        ConnectionClosed,
        OSError,
    ):  # the service has closed it: its reason is among what can still be read
        answer.received += _read(connection, _QUIET_S, _MOST_READ)
    connection.close()
    answer.received += _read(connection, 0, _MOST_KEPT)  # what came before the end and was not read yet
    answer.close_code = connection.close_code
    return answer


def _read(connection: ClientConnection, wait_s: float, most: int) -> list[Any]:
    return list(_receive(connection, wait_s, most))


def _receive(connection: ClientConnection, wait_s: float, most: int) -> Iterator[Any]:
    try:
        for _ in range(most):
            yield connection.recv(timeout=wait_s)
    except (ConnectionClosed, TimeoutError):
        return
