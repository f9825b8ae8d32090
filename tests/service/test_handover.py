"""A stream that moves before its replica has gone: real services that are asked to end, on real sockets."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.client import Client
from service.mask_receiver import MaskMessage
from service.mask_stream import MaskStream
from service.wire import END, PushedFrame, encode_picture, pack_frame, unpack_mask
from tests.bitstreams import encode_codes, read_code
from tests.conftest import Server

WAIT_S = 30.0
FPS = 25.0
PICTURES = [encode_picture(np.full((36, 64, 3), level, np.uint8), "jpeg") for level in (0, 255)]
UNITS = {codec: encode_codes(range(100), codec, keys_every=10) for codec in ("h264", "hevc")}
Launch = Callable[..., Server]


class Pusher(threading.Thread):
    """A stream at its own pace: frame n (from 0) has the stamp n + 1."""

    def __init__(self, stream: MaskStream, frames: Iterator[bytes]) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.pushed = 0
        self.answers: list[MaskMessage] = []
        self.failure: BaseException | None = None
        self.is_done = threading.Event()
        self._frames = frames

    def run(self) -> None:
        try:
            with self.stream:
                while not self.is_done.wait(1 / FPS):
                    self.push()
                    self.answers += self.stream.arrived()
                self.answers += self.stream.finish()
        except BaseException as error:  # noqa: BLE001 - judged by the test
            self.failure = error

    def push(self) -> None:
        self.pushed += 1
        self.stream.push(next(self._frames), captured_at_us=self.pushed)

    def end(self) -> None:
        self.is_done.set()
        self.join(WAIT_S)
        assert not self.is_alive()
        assert self.failure is None, self.failure


def frames_of(codec: str) -> Iterator[bytes]:
    return itertools.cycle(UNITS.get(codec, PICTURES))


def number_of(codec: str, message: MaskMessage) -> int:
    """Which frame a mask shows, as far as the picture says it."""
    return read_code(message.mask_hw) if codec in UNITS else int(message.mask_hw.all())


def check(pusher: Pusher, codec: str) -> None:
    """In order, each once, of its own frame; what has no answer was dropped by a cause."""
    stamps = [message.captured_at_us for message in pusher.answers]
    assert stamps == sorted(set(stamps)) == [message.sequence for message in pusher.answers]
    period = len(UNITS[codec]) if codec in UNITS else 2
    assert [number_of(codec, message) for message in pusher.answers] == [
        (stamp - 1) % period for stamp in stamps
    ]
    counts = [
        (message.received, sum(message.dropped.values()), message.skipped) for message in pusher.answers
    ]
    assert counts == sorted(counts) and all(
        sorted(column) == list(column) for column in zip(*counts, strict=True)
    )
    last = pusher.answers[-1]
    assert last.sequence == pusher.pushed, "the newest frame is always answered"
    assert last.received == pusher.pushed
    assert len(stamps) + sum(last.dropped.values()) + last.skipped + pusher.stream.unread == pusher.pushed


@pytest.fixture
def pair(launch_server: Launch, monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    """Two services; every client tries the first one first."""
    monkeypatch.setattr("service.replicas.random.sample", lambda given, count: list(given))
    with ThreadPoolExecutor(2) as starters:
        return list(starters.map(lambda _: launch_server(SURGSEG_ADMISSION="0"), range(2)))


def wait_until(is_true: Callable[[], object]) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("codec", "mode"),
    [("jpeg", "latest"), ("jpeg", "every"), ("h264", "latest"), ("h264", "every"), ("hevc", "latest")],
)
def test_a_stream_moves_without_a_gap(pair: list[Server], codec: Any, mode: Any) -> None:
    events: list[dict[str, Any]] = []
    with Client([server.url for server in pair]) as client:
        stream = client.stream(codec=codec, mode=mode, max_gap_s=10, on_event=events.append)
        pusher = Pusher(stream, frames_of(codec))
        pusher.start()
        wait_until(lambda: len(pusher.answers) > 10)
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


def test_with_nowhere_to_go_it_is_served_for_half_the_time_and_then_has_a_gap(launch_server: Launch) -> None:
    server = launch_server(SURGSEG_DRAIN_TIMEOUT_S="3")
    with Client(server.url) as client:
        pusher = Pusher(client.stream(max_gap_s=1.0), frames_of("jpeg"))
        pusher.start()
        wait_until(lambda: len(pusher.answers) > 5)
        server.process.send_signal(signal.SIGTERM)
        signalled_at = time.monotonic()
        assert server.process.wait(WAIT_S) == 0
        ended_s = time.monotonic() - signalled_at
        pusher.is_done.set()
        pusher.join(WAIT_S)
    assert 1.4 < ended_s < 4.0
    assert max(message.arrived_at for message in pusher.answers) > signalled_at + 1.0
    assert pusher.stream.moves == []
    assert [gap.url for gap in pusher.stream.gaps] == [""]


@pytest.mark.parametrize("mode", ["latest", "every"])
def test_a_replica_that_dies_while_it_hands_over_costs_a_gap(pair: list[Server], mode: Any) -> None:
    """Held still, it hears neither that the stream has gone on elsewhere nor answers; then it is killed."""
    with Client([server.url for server in pair]) as client:
        pusher = Pusher(client.stream(mode=mode, max_gap_s=20), frames_of("jpeg"))
        pusher.start()
        wait_until(lambda: len(pusher.answers) > 5)
        opener = pusher.stream._route.open_elsewhere
        may_open = threading.Event()

        def open_late(*arguments: Any) -> Any:
            may_open.wait(WAIT_S)
            return opener(*arguments)

        pusher.stream._route.open_elsewhere = open_late  # type: ignore[method-assign]
        pair[0].process.send_signal(signal.SIGTERM)
        wait_until(lambda: pusher.stream._handover)
        pair[0].process.send_signal(signal.SIGSTOP)
        pushed = pusher.pushed
        wait_until(lambda: pusher.pushed > pushed + 3)
        may_open.set()
        wait_until(lambda: pusher.stream._handover and pusher.stream._handover.has_switched)
        pushed = pusher.pushed
        wait_until(lambda: pusher.pushed > pushed + 3)
        pair[0].process.kill()
        wait_until(lambda: pusher.stream.gaps)
        pusher.end()
    (gap,) = pusher.stream.gaps
    stamps = [message.captured_at_us for message in pusher.answers]
    assert stamps == sorted(set(stamps)) == [message.sequence for message in pusher.answers]
    lost = set(range(1, pusher.pushed + 1)) - set(stamps)
    if mode == "every":
        assert (lost, gap.loss.frames) == (set(), 0) and gap.resent > 3
    else:
        assert gap.loss.sequences is not None
        assert gap.loss.frames >= 3 and lost >= set(range(gap.loss.sequences[0], gap.loss.sequences[1] + 1))


def test_closing_in_the_middle_of_a_handover_holds_nobody_up(launch_server: Launch) -> None:
    server = launch_server()
    with Client(server.url) as client:
        stream = client.stream(mode="every", max_gap_s=20)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: stream._handover)
        began_at = time.monotonic()
        stream.close()
        assert server.process.wait(WAIT_S) == 0
        assert time.monotonic() - began_at < 3.0
    assert not stream._receiver.is_alive()
    wait_until(lambda: not any(each.name == "surgseg-handover" for each in threading.enumerate()))


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


def test_a_second_signal_ends_the_service_at_once(launch_server: Launch) -> None:
    server = launch_server(SURGSEG_DRAIN_TIMEOUT_S="60")
    with Client(server.url) as client:
        pusher = Pusher(client.stream(max_gap_s=0.5), frames_of("jpeg"))
        pusher.start()
        wait_until(lambda: len(pusher.answers) > 5)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: pusher.stream._handover)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10.0)
        wait_until(lambda: pusher.stream.gaps)
        pusher.is_done.set()
        pusher.join(WAIT_S)
        assert not pusher.is_alive()


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
