"""How a server begins and how it ends."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service.wire import PushedFrame, pack_frame, unpack_mask

WAIT_S = 30.0
PICTURE = cv2.imencode(".jpg", np.full((720, 1280, 3), 220, np.uint8))[1].tobytes()

# A backend that thresholds like the small bundle's graph, slowly, and dies when a file appears.
FRAGILE = """
import sys, time
from pathlib import Path
from service import backends
from service.backends.fake import FakeBackend
from service.errors import BackendError

class Fragile(FakeBackend):
    name = "fragile"
    def segment(self, images_nhwc, *, is_urgent=True):
        time.sleep(float(Path("DELAY").read_text()))
        if Path("FAULT").exists():
            raise BackendError("The device is gone.", "a mask", "Restart the service.")
        return super().segment(images_nhwc)

sys.modules["fragile"] = sys.modules["__main__"]
backends.BACKENDS["fragile"] = "fragile:Fragile"
from service.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def fragile(tmp_path: Path, launch_server: Callable[..., Any]) -> Any:
    """A server whose backend takes as long as `delay` says and dies when `fault` exists."""
    script = tmp_path / "fragile.py"
    fault, delay = tmp_path / "fault", tmp_path / "delay"
    delay.write_text("0")
    script.write_text(FRAGILE.replace("FAULT", str(fault)).replace("DELAY", str(delay)))
    repository = Path(__file__).resolve().parents[2]
    server = launch_server(
        "--backend",
        "fragile",
        program=[str(script)],
        SURGSEG_PROBE_INTERVAL_S="0.1",
        SURGSEG_READY_WINDOW_S="3",
        PYTHONPATH=str(repository),
    )
    server.fault, server.delay = fault, delay
    return server


def read_to_the_end(socket: ClientConnection) -> tuple[list[int], list[dict[str, Any]], int]:
    """The sequences of the masks, the events, and the code of the close frame."""
    sequences: list[int] = []
    events: list[dict[str, Any]] = []
    while True:
        try:
            message = socket.recv(WAIT_S)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return sequences, events, closed.rcvd.code
        if isinstance(message, str):
            events.append(json.loads(message))
        else:
            sequences.append(unpack_mask(message)[0].sequence)


@pytest.mark.parametrize("mode", ["latest", "every"])
def test_sigterm_finishes_what_is_under_way_says_why_and_closes_with_1001(fragile: Any, mode: str) -> None:
    with connect(f"{fragile.ws_url}/v1/stream?mode={mode}", open_timeout=WAIT_S) as socket:
        assert json.loads(socket.recv(WAIT_S))["type"] == "ready"
        fragile.delay.write_text("0.3")
        socket.send(pack_frame(PushedFrame(1, PICTURE)))
        socket.send(pack_frame(PushedFrame(2, PICTURE)))
        while sum(stream["received"] for stream in httpx.get(f"{fragile.url}/v1/streams").json()) < 2:
            time.sleep(0.01)
        fragile.process.send_signal(signal.SIGTERM)
        sequences, events, code = read_to_the_end(socket)
    assert sequences[-1] == 2
    if mode == "every":
        assert sequences == [1, 2]
    assert [event["type"] for event in events] == ["closing"]
    assert "shutting down" in events[0]["reason"]
    assert code == 1001
    assert fragile.process.wait(WAIT_S) == 0
    assert "Traceback" not in "".join(fragile.output)


def test_a_draining_server_refuses_new_work_and_says_so(fragile: Any) -> None:
    with connect(f"{fragile.ws_url}/v1/stream?mode=every", open_timeout=WAIT_S) as socket:
        socket.recv(WAIT_S)
        fragile.delay.write_text("1.5")
        socket.send(pack_frame(PushedFrame(1, PICTURE)))
        while sum(stream["received"] for stream in httpx.get(f"{fragile.url}/v1/streams").json()) < 1:
            time.sleep(0.01)
        fragile.process.send_signal(signal.SIGTERM)
        ends_at = time.monotonic() + WAIT_S
        while httpx.get(f"{fragile.url}/readyz").status_code == 200:
            assert time.monotonic() < ends_at
        refused = httpx.post(f"{fragile.url}/v1/segment", content=PICTURE)
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["found"]
        with connect(f"{fragile.ws_url}/v1/stream", open_timeout=WAIT_S) as late:
            _, events, code = read_to_the_end(late)
        assert (events[0]["slug"], code) == ("unavailable", 1013)
        assert read_to_the_end(socket)[0] == [1]
    assert fragile.process.wait(WAIT_S) == 0


def test_sigint_ends_it_with_130_and_without_a_traceback(launch_server: Callable[..., Any]) -> None:
    server = launch_server()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(WAIT_S) == 130
    assert "Traceback" not in "".join(server.output)


def test_a_dead_engine_ends_the_process_with_one_clear_message(fragile: Any) -> None:
    with connect(f"{fragile.ws_url}/v1/stream", open_timeout=WAIT_S) as socket:
        assert json.loads(socket.recv(WAIT_S))["type"] == "ready"
        fragile.fault.touch()
        _, events, code = read_to_the_end(socket)
    assert [event["type"] for event in events] == ["error"]
    assert events[0]["fatal"]
    assert "device is gone" in events[0]["found"]
    assert code == 1011
    assert fragile.process.wait(WAIT_S) == 1
    output = "".join(fragile.output)
    assert output.count("The device is gone. Expected a mask. Restart the service.") == 1
    assert "Traceback" not in output


def test_an_idle_server_stays_ready_because_it_keeps_proving_it(launch_server: Callable[..., Any]) -> None:
    server = launch_server(SURGSEG_PROBE_INTERVAL_S="0.2", SURGSEG_READY_WINDOW_S="2")
    time.sleep(2.5)
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_a_server_whose_engine_hangs_is_alive_but_not_ready(
    launch_server: Callable[..., Any], fragile: Any
) -> None:
    assert httpx.get(f"{fragile.url}/readyz").status_code == 200
    fragile.delay.write_text("1000")
    ends_at = time.monotonic() + WAIT_S
    while httpx.get(f"{fragile.url}/readyz").status_code == 200:
        assert time.monotonic() < ends_at
        time.sleep(0.2)
    assert httpx.get(f"{fragile.url}/healthz").status_code == 200
    assert "surgseg_ready 0.0" in httpx.get(f"{fragile.url}/metrics").text
    fragile.process.kill()


def test_the_metrics_count_what_a_stream_did(launch_server: Callable[..., Any]) -> None:
    server = launch_server()
    with connect(f"{server.ws_url}/v1/stream?mode=every", open_timeout=WAIT_S) as socket:
        socket.recv(WAIT_S)
        socket.send(pack_frame(PushedFrame(0, b"no picture")))
        socket.recv(WAIT_S)
        for number in range(5):
            socket.send(pack_frame(PushedFrame(number, PICTURE)))
            socket.recv(WAIT_S)
        while_open = httpx.get(f"{server.url}/metrics").text.splitlines()
    assert "surgseg_streams 1.0" in while_open
    assert "surgseg_ready 1.0" in while_open
    assert 'surgseg_frames_received_total{stream="1"} 6.0' in while_open
    assert 'surgseg_frames_segmented_total{stream="1"} 5.0' in while_open
    assert 'surgseg_frames_dropped_total{reason="undecodable",stream="1"} 1.0' in while_open
    assert 'surgseg_frame_seconds_count{stream="1"} 5.0' in while_open
    assert 'surgseg_viewer_skipped_total{stream="1"} 0.0' in while_open
    for stage in ("decode", "prepare", "wait", "infer", "encode", "send"):
        assert f'surgseg_stage_seconds_count{{stage="{stage}"}} 5.0' in while_open
    assert any(line.startswith('surgseg_stream_fps{stream="1"}') for line in while_open)
    assert any(line.startswith("surgseg_model_info{") and "small-threshold" in line for line in while_open)
    ends_at = time.monotonic() + WAIT_S
    while "surgseg_streams 0.0" not in (closed := httpx.get(f"{server.url}/metrics").text.splitlines()):
        assert time.monotonic() < ends_at
    assert 'surgseg_frames_received_total{stream="1"} 6.0' in closed
    assert not any(line.startswith('surgseg_stream_fps{stream="1"}') for line in closed)
