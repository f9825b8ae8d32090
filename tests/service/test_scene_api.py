"""`/v1/scene`: paced pictures, clear refusals, a limit, and an end when the client leaves."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress

import cv2
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from service.api.scene import MAX_SCENES, router
from service.streams.synthetic import SyntheticScene
from service.wire import PushedFrame, unpack_frame

SMALL = "/v1/scene?width=160&height=96"


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    app.state.draining = asyncio.Event()
    app.include_router(router)
    with TestClient(app) as client:
        yield client


@contextmanager
def connect(client: TestClient, address: str) -> Iterator[WebSocketTestSession]:
    """The test client cancels the handler it leaves; whether it then raises that itself is a race of its own."""
    with ExitStack() as stack:
        yield stack.enter_context(client.websocket_connect(address))
        with suppress(CancelledError):
            stack.close()


def receive(socket: WebSocketTestSession) -> PushedFrame:
    return unpack_frame(socket.receive_bytes())


def decode(frame: PushedFrame) -> np.ndarray:
    image_bgr = cv2.imdecode(np.frombuffer(frame.payload, np.uint8), cv2.IMREAD_COLOR)
    assert image_bgr is not None
    return image_bgr[:, :, ::-1]


def test_pictures_are_those_of_the_scene_at_their_time(client: TestClient) -> None:
    with connect(client, f"{SMALL}&fps=10&seed=4&start_s=2") as socket:
        first = receive(socket)
        later = [receive(socket) for _ in range(3)][-1]
    scene = SyntheticScene(160, 96, seed=4)
    for frame in (first, later):
        time_s = 2 + (frame.captured_at_us - first.captured_at_us) / 1e6
        difference = np.abs(decode(frame).astype(int) - scene.render(time_s)[0])
        assert np.median(difference) <= 4


def test_pictures_are_paced_on_the_clock(client: TestClient) -> None:
    with connect(client, f"{SMALL}&fps=20") as socket:
        receive(socket)
        started_at = time.monotonic()
        stamps = [receive(socket).captured_at_us for _ in range(10)]
        elapsed_s = time.monotonic() - started_at
    assert elapsed_s > 0.4
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    assert all(gap > 0 and abs(gap / 50_000 - round(gap / 50_000)) < 0.01 for gap in gaps)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("fps=0", "fps is '0'"),
        ("fps=many", "fps is 'many'"),
        ("fps=nan", "fps is 'nan'"),
        ("fps=3e1", "fps is '3e1'"),
        ("width=1_28", "width is '1_28'"),
        ("seed=%2B5", "seed is '+5'"),
        ("width=12.5", "width is '12.5'"),
        ("height=100000", "height is '100000'"),
        ("seed=-1", "seed is '-1'"),
        ("view=square", "no view 'square'"),
        ("instruments=9", "instruments is '9'"),
        ("colour=red", "no parameter 'colour'"),
    ],
)
def test_a_wrong_parameter_gives_one_clear_error(client: TestClient, query: str, named: str) -> None:
    with connect(client, f"/v1/scene?{query}") as socket:
        event = json.loads(socket.receive_text())
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert event["type"] == "error" and named in event["detail"]
    assert closed.value.code == 1008


def test_scenes_are_limited_and_a_place_is_free_again_when_a_client_leaves(client: TestClient) -> None:
    sockets = [connect(client, SMALL) for _ in range(MAX_SCENES)]
    for socket in sockets:
        receive(socket.__enter__())
    with connect(client, SMALL) as refused:
        event = json.loads(refused.receive_text())
        with pytest.raises(WebSocketDisconnect) as closed:
            refused.receive_text()
    assert event["slug"] == "unavailable" and closed.value.code == 1013
    for socket in sockets:
        socket.__exit__(None, None, None)
    with connect(client, SMALL) as socket:
        receive(socket)


def test_a_scene_leaves_no_thread_behind(client: TestClient) -> None:
    def painters() -> int:
        return sum(thread.name.startswith("scene") for thread in threading.enumerate())

    with connect(client, SMALL) as socket:
        receive(socket)
        assert painters() == 1
    deadline_at = time.monotonic() + 5
    while painters() and time.monotonic() < deadline_at:
        time.sleep(0.02)
    assert painters() == 0


def test_a_draining_service_says_so_and_closes(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI) and client.portal is not None
    with connect(client, SMALL) as socket:
        receive(socket)
        client.portal.call(app.state.draining.set)
        with pytest.raises(WebSocketDisconnect) as closed:
            while "text" not in (message := socket.receive()):
                socket._raise_on_close(message)
            assert json.loads(message["text"])["type"] == "closing"
            socket.receive_bytes()
    assert closed.value.code == 1001
