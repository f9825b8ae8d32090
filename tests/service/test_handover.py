"""A stream that moves before its replica has gone: real services that are asked to end, on real sockets."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.client import Client
from service.wire import END, PushedFrame, pack_frame, unpack_mask
from tests.conftest import Server
from tests.service.handover_rig import (
    PICTURES,
    UNITS,
    WAIT_S,
    Launch,
    Pusher,
    check,
    frames_of,
    start_pair,
    wait_until,
)


@pytest.fixture
def pair(launch_server: Launch, monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    return start_pair(launch_server, monkeypatch)


@pytest.mark.parametrize(
    ("codec", "mode"),
    [
        ("jpeg", "latest"),
        ("jpeg", "every"),
        ("h264", "latest"),
        ("h264", "every"),
        ("hevc", "latest"),
        ("h264 once", "every"),
    ],
)
def test_a_stream_moves_without_a_gap(pair: list[Server], codec: Any, mode: Any) -> None:
    events: list[dict[str, Any]] = []
    with Client([server.url for server in pair]) as client:
        stream = client.stream(codec=codec.split()[0], mode=mode, max_gap_s=10, on_event=events.append)
        pusher = Pusher(stream, frames_of(codec))
        pusher.begin(answers=10)
        pair[0].process.send_signal(signal.SIGTERM)
        signalled_at = time.monotonic()
        assert pair[0].process.wait(WAIT_S) == 0
        ended_s = time.monotonic() - signalled_at
        moved_at = pusher.pushed
        wait_until(lambda: pusher.answers[-1].sequence > moved_at + 5)
        pusher.end()
    (move,) = stream.moves
    print(codec, mode, move.describe(), f"the service ended after {ended_s:.2f} s")
    assert stream.gaps == []
    assert (move.url, move.has_other_model) == (pair[1].ws_url, False)
    assert "shutting down" in move.reason and "no frame without an answer" in move.describe()
    assert [event["type"] for event in events if event["type"] != "notice"] == ["leaving", "move"]
    check(pusher, codec)
    if mode == "every":
        assert len(pusher.answers) == pusher.pushed
    print(pusher.answers[-1].dropped)
    assert set(pusher.answers[-1].dropped) <= ({"superseded", "behind"} if codec in UNITS else {"superseded"})


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_a_stream_that_pushes_nothing_for_a_while_moves_too(pair: list[Server], codec: Any) -> None:
    """Pictures at once; a bitstream with the key frame that comes then."""
    with Client([server.url for server in pair]) as client:
        stream = client.stream(codec=codec, mode="every", max_gap_s=10)
        pusher = Pusher(stream, frames_of(codec))
        for _ in range(10):
            pusher.push()
        wait_until(lambda: pusher.answers.extend(stream.arrived()) or len(pusher.answers) == 10)
        pair[0].process.send_signal(signal.SIGTERM)
        if codec == "jpeg":
            wait_until(lambda: stream.moves)
        else:
            wait_until(lambda: stream._handover is not None and stream._handover.opened)
            assert stream.moves == []
        for _ in range(10):
            pusher.push()
        pusher.answers += stream.finish()
        assert len(stream.moves) == 1 and stream.gaps == []
        check(pusher, codec)
        stream.close()
    assert pair[0].process.wait(WAIT_S) == 0


@pytest.mark.parametrize("mode", ["latest", "every"])
def test_a_rolling_restart_loses_nothing(launch_server: Launch, monkeypatch: Any, mode: Any) -> None:
    """Each of two services is asked to end and comes back at its own address."""
    pair = start_pair(launch_server, monkeypatch)
    with Client([server.url for server in pair]) as client:
        pusher = Pusher(client.stream(mode=mode, max_gap_s=10), frames_of("jpeg"))
        pusher.start()
        for server in pair:
            answered = len(pusher.answers)
            wait_until(lambda answered=answered: len(pusher.answers) > answered + 10)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(WAIT_S) == 0
            launch_server("--port", server.url.rpartition(":")[2], SURGSEG_ADMISSION="0")
        pusher.end()
    assert [move.url for move in pusher.stream.moves] == [pair[1].ws_url, pair[0].ws_url]
    assert pusher.stream.gaps == []
    check(pusher, "jpeg")
    assert set(pusher.answers[-1].dropped) <= {"superseded"}


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_a_stream_that_has_finished_is_answered_and_goes_nowhere(launch_server: Launch, codec: Any) -> None:
    server = launch_server()
    with Client(server.url) as client, client.stream(codec=codec, mode="every", max_gap_s=20) as stream:
        pusher = Pusher(stream, frames_of(codec))
        for _ in range(8):
            pusher.push()
        server.process.send_signal(signal.SIGTERM)
        pusher.answers += stream.finish()
        check(pusher, codec)
        assert server.process.wait(3.0) == 0
    assert (stream.moves, stream.gaps) == ([], [])


def test_a_closed_service_refuses_who_can_move_where_a_balancer_sees_it(launch_server: Launch) -> None:
    server = launch_server()
    with connect(f"{server.ws_url}/v1/stream?shutdown=move") as socket:
        assert json.loads(socket.recv(WAIT_S))["shutdown"] == "move"
        server.process.send_signal(signal.SIGTERM)
        leaving = json.loads(socket.recv(WAIT_S))
        assert leaving == {"type": "leaving", "reason": "The service is shutting down.", "timeout_s": 5.0}
        with pytest.raises(InvalidStatus) as refused, connect(f"{server.ws_url}/v1/stream?shutdown=move"):
            pass
        assert refused.value.response.status_code == 503
        assert b"shutting down" in (refused.value.response.body or b"")
        socket.send(pack_frame(PushedFrame(7, PICTURES[0])))
        socket.send(END)
        answer = socket.recv(WAIT_S)
        assert isinstance(answer, bytes) and unpack_mask(answer)[0].captured_at_us == 7
        (closing,) = read_events(socket)
    assert (closing["type"], closing["received"], closing["dropped"], closing["skipped"]) == (
        "closing",
        1,
        {},
        0,
    )
    assert socket.close_code == 1000
    assert server.process.wait(3.0) == 0


def read_events(socket: ClientConnection) -> list[dict[str, Any]]:
    events = []
    try:
        while True:
            events.append(json.loads(socket.recv(WAIT_S)))
    except ConnectionClosed:
        return events
