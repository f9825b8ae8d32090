"""What becomes of a stream that should move and cannot, and that nobody is held up by it."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from service.client import Client
from service.wire import encode_picture
from tests.bitstreams import encode_codes
from tests.conftest import Server
from tests.service.handover_rig import WAIT_S, Launch, Pusher, check, frames_of, start_pair, wait_until

PNGS = [encode_picture(np.full((36, 64, 3), level, np.uint8), "png") for level in (0, 255)]


@pytest.fixture
def pair(launch_server: Launch, monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    return start_pair(launch_server, monkeypatch)


def test_with_nowhere_to_go_it_is_served_for_half_the_time_and_then_has_a_gap(launch_server: Launch) -> None:
    server = launch_server(SURGSEG_DRAIN_TIMEOUT_S="3")
    with Client(server.url) as client:
        pusher = Pusher(client.stream(max_gap_s=1.0), frames_of("jpeg"))
        pusher.begin()
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


@pytest.mark.parametrize(("mode", "is_killed"), [("latest", True), ("every", True), ("latest", False)])
def test_a_replica_that_dies_while_it_hands_over_costs_a_gap(
    pair: list[Server], mode: Any, is_killed: bool
) -> None:
    """Held still, it hears neither that the stream has gone on elsewhere nor answers; then it is killed, or not."""
    with Client([server.url for server in pair]) as client:
        pusher = Pusher(client.stream(mode=mode, max_gap_s=20 if is_killed else 6), frames_of("jpeg"))
        pusher.begin()
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
        split_at = pusher.stream._frames._split_at or 0
        wait_until(lambda: pusher.pushed > split_at + 3)
        if is_killed:
            pair[0].process.kill()
        wait_until(lambda: pusher.stream.gaps)
        pusher.end()
        pair[0].process.kill()
    (gap,) = pusher.stream.gaps
    stamps = [message.captured_at_us for message in pusher.answers]
    assert stamps == sorted(set(stamps)) == [message.sequence for message in pusher.answers]
    lost = set(range(1, pusher.pushed + 1)) - set(stamps)
    if mode == "every":
        assert (lost, gap.loss.frames) == (set(), 0) and gap.resent > 3
    else:
        assert gap.loss.sequences is not None
        assert gap.loss.frames >= 3 and lost >= set(range(gap.loss.sequences[0], gap.loss.sequences[1] + 1))
        assert gap.loss.sequences[1] == split_at, "what went to the next replica is answered there"


def test_a_key_frame_that_comes_too_late_costs_a_gap(launch_server: Launch, monkeypatch: Any) -> None:
    """The next replica is there by then, and is gone to when the old one closes."""
    pair = start_pair(launch_server, monkeypatch, SURGSEG_DRAIN_TIMEOUT_S="2")
    units = encode_codes(range(100), "h264", keys_every=100)
    with Client([server.url for server in pair]) as client:
        pusher = Pusher(client.stream(codec="h264", max_gap_s=10), itertools.cycle(units))
        pusher.begin(answers=10)
        pair[0].process.send_signal(signal.SIGTERM)
        assert pair[0].process.wait(WAIT_S) == 0
        wait_until(lambda: pusher.stream.gaps)
        moved_at = pusher.pushed
        wait_until(lambda: pusher.answers[-1].sequence > moved_at)
        pusher.end()
    assert pusher.stream.moves == []
    (gap,) = pusher.stream.gaps
    assert gap.url == pair[1].ws_url and gap.duration_s < 0.5
    stamps = [message.captured_at_us for message in pusher.answers]
    assert stamps == sorted(set(stamps)) == [message.sequence for message in pusher.answers]
    assert pusher.answers[-1].dropped["awaiting_key"] > 0


@pytest.mark.parametrize("loss", ["next", "both"])
def test_a_next_replica_that_dies_is_followed_by_another(
    launch_server: Launch, monkeypatch: Any, loss: str
) -> None:
    """Nothing that went to it is lost where the frames are kept."""
    pair = start_pair(launch_server, monkeypatch)
    third = launch_server()
    with Client([server.url for server in (*pair, third)]) as client:
        stream = client.stream(codec="png", mode="every", max_gap_s=20)
        adopt, has_switched = stream._follow, threading.Event()

        def follow_late(*arguments: Any) -> None:
            """The moment between the two connections, made long."""
            pair[1].process.kill()
            pair[1].process.wait(WAIT_S)
            has_switched.set()
            adopt(*arguments)

        stream._follow = follow_late  # type: ignore[method-assign]
        pusher = Pusher(stream, itertools.cycle(PNGS))
        pusher.begin()
        pair[0].process.send_signal(signal.SIGTERM if loss == "next" else signal.SIGKILL)
        if loss == "both":
            pair[1].process.kill()
        wait_until(lambda: stream.gaps)
        pusher.end()
    assert stream.gaps[-1].url == third.ws_url
    assert len(stream.moves) == (loss == "next") == has_switched.is_set()
    check(pusher, "png")
    assert len(pusher.answers) == pusher.pushed


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


def test_a_second_signal_ends_the_service_at_once(launch_server: Launch) -> None:
    server = launch_server(SURGSEG_DRAIN_TIMEOUT_S="60")
    with Client(server.url) as client:
        pusher = Pusher(client.stream(max_gap_s=0.5), frames_of("jpeg"))
        pusher.begin()
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: pusher.stream._handover)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10.0)
        wait_until(lambda: pusher.stream.gaps)
        pusher.is_done.set()
        pusher.join(WAIT_S)
        assert not pusher.is_alive()
