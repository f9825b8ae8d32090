"""Pulled streams as their tests see them: opened, described, watched."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from service.contract.masks import decode_mask
from service.wire import MaskHeader, unpack_mask
from tests.bitstreams import read_code
from tests.conftest import Server

WAIT_S = 30.0
COUNT = 100  # pictures of the coded sources, which tell their numbers


@contextmanager
def pulled(puller: Server, url: str, **order: Any) -> Iterator[str]:
    """The id of a stream that is closed in the end."""
    answer = httpx.post(f"{puller.url}/v1/streams", json={"url": url, **order}, timeout=WAIT_S)
    assert answer.status_code == 201, answer.text
    stream_id: str = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/streams/{stream_id}"
    try:
        yield stream_id
    finally:
        closed = httpx.delete(f"{puller.url}/v1/streams/{stream_id}", timeout=WAIT_S)
    assert closed.status_code == 204


def info(puller: Server, stream_id: str) -> dict[str, Any]:
    described: dict[str, Any] = httpx.get(f"{puller.url}/v1/streams/{stream_id}", timeout=WAIT_S).json()
    return described


def await_state(puller: Server, stream_id: str, *states: str) -> dict[str, Any]:
    ends_at = time.monotonic() + WAIT_S
    while (described := info(puller, stream_id))["state"] not in states:
        assert time.monotonic() < ends_at, described
        time.sleep(0.02)
    return described


@dataclass
class Viewer:
    """A socket of `/v1/streams/{id}/masks` and what has come."""

    socket: ClientConnection
    mask: str
    events: list[dict[str, Any]] = field(default_factory=list)

    def receive(self) -> tuple[MaskHeader, int]:
        """The next mask's header and the number that its picture tells; events on the way are kept."""
        while isinstance(message := self.socket.recv(WAIT_S), str):
            self.events.append(json.loads(message))
        header, payload = unpack_mask(message)
        assert header.mask == self.mask
        return header, read_code(decode_mask(payload, self.mask))  # type: ignore[arg-type]

    def receive_all(self) -> list[tuple[MaskHeader, int]]:
        """Everything until the service closes."""
        received = []
        try:
            while True:
                received.append(self.receive())
        except ConnectionClosed:
            return received

    def states(self) -> list[str]:
        return [event["state"] for event in self.events if event["type"] == "notice"]


def check_identity(received: list[tuple[MaskHeader, int]]) -> None:
    """Pictures are numbered as they come, and each tells its own number: gaps in one are gaps in the other."""
    first, first_code = received[0]
    for header, code in received:
        assert (code - first_code) % COUNT == (header.sequence - first.sequence) % COUNT
    sequences = [header.sequence for header, _ in received]
    assert sequences == sorted(set(sequences))
    stamps = [header.pts_s for header, _ in received if header.pts_s is not None]
    assert len(stamps) >= len(received) - 1
    assert stamps == sorted(set(stamps))


def is_balanced(described: dict[str, Any]) -> bool:
    return described["received"] == described["segmented"] + sum(described["dropped"].values())


def find_decoders(puller: Server) -> list[psutil.Process]:
    """The processes that decode: the nursery's children."""
    return [
        child for nursery in psutil.Process(puller.process.pid).children() for child in nursery.children()
    ]


def is_connected_to(process: psutil.Process, port: int) -> bool:
    return any(end.raddr and end.raddr.port == port for end in process.net_connections())


def read_headers(viewer: ClientConnection, headers: list[MaskHeader], count: float = math.inf) -> None:
    """The headers of the next `count` masks, or of all until the connection ends."""
    wanted = len(headers) + count
    with suppress(ConnectionClosed):
        while len(headers) < wanted:
            message = viewer.recv(WAIT_S)
            if isinstance(message, bytes):
                headers.append(unpack_mask(message)[0])
