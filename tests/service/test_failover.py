"""A stream that moves: which replica is next, the numbers of frames across connections, and servers that go."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.server import ServerConnection

from service.client import Client
from service.errors import BackendError, InvalidRequestError, OverloadedError, StreamError, UnavailableError
from service.replicas import is_passing, is_passing_code, order_addresses, plan_attempts
from service.unanswered import UnansweredFrames
from service.wire import MaskHeader, describe_error, pack_event, unpack_frame
from tests.service.test_client import PICTURE, READY, answer, http_server, until_closed, web_socket_server

FULL = OverloadedError("Full.", "room", "Wait.")


def plan(urls: tuple[str, ...], lost: str, count: int) -> list[tuple[str, float]]:
    return [(each.url, each.pause_s) for each in itertools.islice(plan_attempts(urls, lost), count)]


def header(sequence: int, received: int = 0, dropped: dict[str, int] | None = None) -> MaskHeader:
    return MaskHeader(sequence, 0, None, 8, 8, "png", {}, dropped or {}, received or sequence, 0, model="")


def test_the_others_come_first_and_at_once_and_the_rounds_get_slower() -> None:
    assert plan(("a", "b", "c"), "b", 7) == [
        ("c", 0.0), ("a", 0.0), ("b", 0.0), ("c", 0.1), ("a", 0.0), ("b", 0.0), ("c", 0.2),
    ]  # fmt: skip
    assert [pause_s for _, pause_s in plan(("a",), "a", 8)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def test_addresses_are_tried_once_each_in_an_order_of_chance() -> None:
    urls = [f"http://replica-{number}:8000" for number in range(5)]
    orders = {order_addresses([*urls, urls[0]]) for _ in range(50)}
    assert len(orders) > 1
    assert {tuple(sorted(each.http_url for each in order)) for order in orders} == {tuple(urls)}
    with pytest.raises(InvalidRequestError, match="no address"):
        order_addresses([])


def test_only_what_another_replica_may_do_is_tried_there() -> None:
    passing = (FULL, UnavailableError("", "", ""), BackendError("", "", ""))
    assert all(is_passing(error) for error in passing)
    assert not is_passing(StreamError("", "", "")) and not is_passing(InvalidRequestError("", "", ""))
    assert all(is_passing_code(code) for code in (None, 1001, 1006, 1012, 1013))
    assert not any(is_passing_code(code) for code in (1000, 1002, 1007, 1008, 1009))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8), st.booleans())
def test_every_frame_is_answered_once_or_lost_once(parts: list[tuple[int, int]], keeps: bool) -> None:
    """Each connection takes some frames, answers some of them, and is lost."""
    frames = UnansweredFrames("every" if keeps else "latest", keeps_messages=keeps)
    answered: list[int] = []
    lost: list[int] = []
    on_the_way: list[int] = []
    for pushed, answers in parts:
        for _ in range(pushed):
            frames.push(frames.pushed + 101, b"%d" % (frames.pushed + 1))
            on_the_way.append(frames.pushed)
        for sequence in range(1, min(answers, len(on_the_way)) + 1):
            got = frames.answer(header(sequence))
            assert got.sequence == got.received == on_the_way[sequence - 1]
            answered.append(got.sequence)
        loss = frames.lose()
        if loss.sequences is not None and loss.captured_at_us is not None:
            lost += range(loss.sequences[0], loss.sequences[1] + 1)
            assert loss.captured_at_us == (loss.sequences[0] + 100, loss.sequences[1] + 100)
        kept = frames.kept_after(frames.settled)
        assert [int(frame.message) for frame in kept] == [frame.number for frame in kept]
        on_the_way = [frame.number for frame in kept]
        assert not (keeps and lost)
    assert sorted(answered + lost + on_the_way) == list(range(1, frames.pushed + 1))


def test_drops_are_counted_since_the_stream_began() -> None:
    frames = UnansweredFrames("latest", keeps_messages=False)
    for _ in range(3):
        frames.push(0, b"x")
    frames.answer(header(3, 3, {"superseded": 2}))
    frames.lose()
    frames.push(0, b"x")
    frames.push(0, b"x")
    moved = frames.answer(header(2, 2, {"superseded": 1}))
    assert (moved.sequence, moved.received, moved.dropped) == (5, 5, {"superseded": 3})


def answering(count: int | None, then: Callable[[ServerConnection], object] = until_closed) -> Any:
    """A service that answers `count` frames, reads one more, and does `then`."""

    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        for sequence in itertools.count(1):
            stamp = unpack_frame(bytes(connection.recv())).captured_at_us  # type: ignore[arg-type]
            if sequence - 1 == count:
                then(connection)
                return
            connection.send(answer(sequence, stamp))

    return speak


def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.replicas.random.sample", lambda given, count: list(given))


@pytest.mark.parametrize("ending", ["cut", "1001", "1013", "error"])
def test_a_lossless_stream_goes_on_elsewhere_and_nothing_is_lost(ending: str, monkeypatch: Any) -> None:
    in_order(monkeypatch)

    def end(connection: ServerConnection) -> None:
        if ending == "cut":
            connection.socket.close()
        elif ending == "error":
            connection.send(pack_event("error", **describe_error(FULL), fatal=True))
            connection.close(1013)
        else:
            connection.close(int(ending))

    events: list[dict[str, Any]] = []
    with (
        web_socket_server(answering(3, end)) as first,
        web_socket_server(answering(None)) as second,
        Client([first, second]) as client,
        client.stream(mode="every", max_gap_s=5, on_event=events.append) as stream,
    ):
        for number in range(8):
            stream.push(PICTURE, captured_at_us=number + 1)
        answers = list(stream.finish())
        (gap,) = stream.gaps
    assert [message.captured_at_us for message in answers] == list(range(1, 9))
    assert [message.sequence for message in answers] == list(range(1, 9))
    assert (gap.url, gap.loss.frames, gap.resent > 0) == (second, 0, True)
    assert [event["detail"] for event in events if event["type"] == "gap"] == [gap.describe()]


def test_a_live_stream_reports_what_got_no_answer_and_never_waits(monkeypatch: Any) -> None:
    in_order(monkeypatch)
    may_open = threading.Event()
    with (
        web_socket_server(answering(2, lambda connection: connection.socket.close())) as first,
        web_socket_server(answering(None), process_request=lambda *_: may_open.wait(10) and None) as second,
        Client([first, second]) as client,
        client.stream(max_gap_s=5) as stream,
    ):
        got = []
        for number in range(1, 3):
            stream.push(PICTURE, captured_at_us=100 + number)
            message = stream.receive(5)
            assert message is not None
            got.append(message.captured_at_us)
        for number in range(3, 7):
            stream.push(PICTURE, captured_at_us=100 + number)
        may_open.set()
        while not stream.gaps:
            time.sleep(0.01)
        stream.push(PICTURE, captured_at_us=107)
        got += [message.captured_at_us for message in stream.finish()]
    (gap,) = stream.gaps
    assert got == [101, 102, 107]
    assert (gap.loss.frames, gap.loss.sequences, gap.loss.captured_at_us) == (4, (3, 6), (103, 106))


def test_a_gap_that_lasts_too_long_ends_the_stream_with_one_error() -> None:
    with web_socket_server(answering(0, lambda connection: connection.socket.close())) as url:
        client = Client(url)
        stream = client.stream(mode="every", max_gap_s=0.3)
        stream.push(PICTURE, captured_at_us=7)
        with pytest.raises(UnavailableError, match=r"no service for 0\.3 s"):
            next(iter(stream))
        with pytest.raises(UnavailableError):
            stream.push(PICTURE)
        stream.close()
        client.close()
    assert stream.gaps[-1].url == ""
    assert stream.gaps[-1].loss.captured_at_us == (7, 7)


def test_an_error_of_the_stream_s_own_ends_it_at_once() -> None:
    def speak(connection: ServerConnection) -> None:
        connection.send(READY)
        error = StreamError("The bitstream is broken.", "a whole one", "Mend it.")
        connection.send(pack_event("error", **describe_error(error), fatal=True))
        connection.close(1011)

    with (
        web_socket_server(speak) as url,
        Client(url) as client,
        client.stream(max_gap_s=5) as stream,
        pytest.raises(StreamError, match="bitstream is broken"),
    ):
        next(iter(stream))
    assert stream.gaps == []


def test_closing_in_the_middle_of_a_gap_does_not_wait_for_its_end() -> None:
    with web_socket_server(answering(0, lambda connection: connection.socket.close())) as url:
        client = Client(url)
        stream = client.stream(max_gap_s=60)
    stream.push(np.zeros((8, 8, 3), np.uint8))
    stream.close()
    client.close()
    assert not stream._receiver.is_alive()
    assert list(stream) == []


def test_requests_go_to_another_replica_where_one_does_not_answer(monkeypatch: Any) -> None:
    in_order(monkeypatch)
    with (
        http_server(200, "application/json", b'{"name": "card"}') as url,
        Client(["http://127.0.0.1:9", url]) as client,
    ):
        assert client.model()["name"] == "card"
