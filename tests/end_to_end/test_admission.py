"""A stream that the others would suffer from, against a real server: refused with a reason and a time to try again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.client import Client
from service.errors import OverloadedError
from tests.bitstreams import encode_codes


def open_many(url: str, count: int, unit: bytes, **hints: Any) -> tuple[int, list[OverloadedError]]:
    """How many of `count` equal streams are let in, each sending, and the refusals of the others."""
    refusals: list[OverloadedError] = []
    streams = []
    with Client(url) as client:
        for _ in range(count):
            try:
                streams.append(client.stream(codec="h264", **hints))
            except OverloadedError as error:
                refusals.append(error)
                continue
            served = 0
            while served < 3:
                streams[-1].push(unit)
                served += streams[-1].receive(0.5) is not None
        for stream in streams:
            stream.close()
    return len(streams), refusals


@pytest.mark.parametrize("is_on", [True, False])
def test_a_stream_too_many_is_refused_with_a_time_to_try_again(
    launch_server: Callable[..., Any], is_on: bool
) -> None:
    running = launch_server(SURGSEG_ADMISSION="1" if is_on else "0")
    admitted, refusals = open_many(running.url, 6, encode_codes([1])[0], fps=500, width=1920, height=1080)
    if not is_on:
        assert (admitted, refusals) == (6, [])
        return
    assert admitted >= 1
    assert refusals
    assert "cores" in refusals[0].found
    assert refusals[0].retry_after_s >= 5
    assert f"{refusals[0].retry_after_s:.0f} s" in refusals[0].remedy


def test_a_pulled_stream_too_many_has_a_retry_after_header(launch_server: Callable[..., Any]) -> None:
    running = launch_server(SURGSEG_ADMISSION="1", SURGSEG_PULL_SCHEMES="udp", SURGSEG_PULL_HOSTS="127.0.0.1")
    with (
        Client(running.url) as client,
        client.stream(codec="h264", fps=500, width=3840, height=2160) as stream,
    ):
        served = 0
        while served < 3:  # only then is it known what a frame costs
            stream.push(encode_codes([1])[0])
            served += stream.receive(0.5) is not None
        order = {"url": "udp://127.0.0.1:59999", "fps": 1000, "width": 3840, "height": 2160}
        answer = httpx.post(f"{running.url}/v1/streams", json=order)
    assert answer.status_code == 503
    assert answer.json()["slug"] == "overloaded"
    assert int(answer.headers["Retry-After"]) >= 5
    assert answer.json()["retry_after_s"] >= 5


@pytest.mark.parametrize(
    "query",
    ["deadline_ms=0", "deadline_ms=soon", "priority=10", "priority=1.5", "fps=0", "width=0", "height=nan"],
)
def test_terms_out_of_range_are_refused(server: Any, query: str) -> None:
    from websockets.sync.client import connect

    with connect(f"{server.ws_url}/v1/stream?{query}") as socket:
        message = socket.recv(timeout=20)
    assert query.split("=")[0] in message
    assert "invalid-request" in message


def test_a_deadline_that_cannot_be_met_is_a_drop_with_that_cause(server: Any) -> None:
    with Client(server.url) as client, client.stream(codec="h264", deadline_ms=1) as stream:
        for unit in encode_codes(range(30)):
            stream.push(unit)
            time.sleep(0.01)
        list(stream.finish())
        ends_at = time.monotonic() + 20
        account: dict[str, Any] = {}
        while time.monotonic() < ends_at and not account.get("dropped", {}).get("deadline"):
            account = next(one for one in client.streams() if one["id"] == stream.ready["stream"])
            time.sleep(0.05)
    assert account["dropped"]["deadline"] > 0
