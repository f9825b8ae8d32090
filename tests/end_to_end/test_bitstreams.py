"""H.264 and HEVC pushed to a real server: identity, what a killed decoder or service leaves, and draining."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from service.errors import UnavailableError
from service.mask_stream import MaskStream
from tests.bitstreams import encode_codes, read_code

FPS = 25


def find_children(pid: int) -> list[int]:
    """Every process that a process has started, and theirs."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:
            continue
        found += children
        waiting += children
    return found


def find_decoders(pid: int) -> list[int]:
    """The processes that decode: the nursery's children."""
    return [grandchild for child in find_children(pid) for grandchild in find_children(child)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def eventually(is_true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    ends_at = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.01)


def push_until_answered(stream: MaskStream, unit: bytes) -> None:
    """Push a key frame again and again: what waits more than a second for a service's first decoder is dropped."""
    ends_at = time.monotonic() + 60
    stream.push(unit, 1)
    while stream.receive(0.5) is None:
        assert time.monotonic() < ends_at
        stream.push(unit, 1)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_masks_of_live_video_belong_to_their_frames(server: Any, codec: Any) -> None:
    units = encode_codes(range(50), codec, 1280, 720, keys_every=25)
    answers = []
    with Client(server.url) as client, client.stream(codec=codec, mask="rle") as stream:
        started_at = time.monotonic()
        for number, unit in enumerate(units):
            stream.push(unit, number + 1)
            answers += stream.arrived()
            time.sleep(max(0.0, started_at + (number + 1) / FPS - time.monotonic()))
        answers += stream.finish()
    assert [read_code(answer.mask_hw) for answer in answers] == [
        answer.captured_at_us - 1 for answer in answers
    ]
    assert len(answers) + sum(answers[-1].dropped.values()) == 50
    assert set(answers[-1].dropped) <= {"superseded"}
    assert (answers[0].width, answers[0].height) == (1280, 720)
    assert set(answers[0].latency_ms) == {"decode", "prepare", "wait", "infer", "encode"}


def test_a_killed_decoder_is_told_and_replaced_in_two_seconds(server: Any) -> None:
    units = encode_codes([number % 256 for number in range(250)], keys_every=10)
    events: list[dict[str, Any]] = []
    killed_at = back_at = 0.0
    with (
        Client(server.url) as client,
        client.stream(codec="h264", mask="rle", on_event=events.append) as stream,
    ):
        for number, unit in enumerate(units):
            stream.push(unit, number + 1)
            time.sleep(1 / FPS)
            for answer in stream.arrived():
                assert read_code(answer.mask_hw) == (answer.captured_at_us - 1) % 256
                if killed_at and answer.dropped.get("decoder_lost"):
                    back_at = back_at or answer.arrived_at
            if number == 20:
                (decoder,) = find_decoders(server.process.pid)
                killed_at = time.monotonic()
                os.kill(decoder, signal.SIGKILL)
            if back_at:
                break
        account = next(entry for entry in client.streams() if entry["id"] == stream.ready["stream"])
    assert 0 < back_at - killed_at < 2.0
    assert account["state"] == "running"
    states = [(event["state"], event["reason"]) for event in events if event["type"] == "notice"]
    assert [state for state, _ in states] == ["restarting", "running"]
    assert "SIGKILL" in states[0][1]


def test_a_closed_stream_leaves_no_decoder(server: Any) -> None:
    with Client(server.url) as client, client.stream(codec="h264") as stream:
        push_until_answered(stream, encode_codes([1])[0])
        assert len(find_decoders(server.process.pid)) == 1
    eventually(lambda: find_decoders(server.process.pid) == [])


def test_a_killed_service_leaves_nothing(launch_server: Callable[..., Any]) -> None:
    before = sorted(Path("/dev/shm").iterdir())
    running = launch_server()
    with Client(running.url) as client:
        stream = client.stream(codec="h264")
        push_until_answered(stream, encode_codes([1])[0])
        children = find_children(running.process.pid)
        assert len(children) >= 2
        running.process.kill()
        running.process.wait()
    eventually(lambda: not any(is_running(child) for child in children), 5)
    assert sorted(Path("/dev/shm").iterdir()) == before


def test_draining_answers_what_is_under_way_and_leaves_no_process(launch_server: Callable[..., Any]) -> None:
    running = launch_server()
    events: list[dict[str, Any]] = []
    with Client(running.url) as client:
        stream = client.stream(codec="hevc", mask="rle", on_event=events.append)
        units = encode_codes(range(6), "hevc")
        push_until_answered(stream, units[0])
        for number, unit in enumerate(units[1:]):
            stream.push(unit, number + 2)
            time.sleep(0.02)
        children = find_children(running.process.pid)
        assert running.stop() == 0
        answers = []
        with pytest.raises(UnavailableError, match="shutting down"):
            while (answer := stream.receive(10)) is not None:
                answers.append(answer)
    assert answers[-1].received - sum(answers[-1].dropped.values()) >= len(answers) >= 1
    assert max(answer.captured_at_us for answer in answers) == 6
    assert [event["type"] for event in events][-1] == "closing"
    assert not any(is_running(child) for child in children)


def test_the_open_streams_say_how_they_are(server: Any) -> None:
    with Client(server.url) as client, client.stream(codec="h264") as stream:
        push_until_answered(stream, encode_codes([1])[0])
        (account,) = httpx.get(f"{server.url}/v1/streams").json()
        assert (account["codec"], account["state"], account["reason"]) == ("h264", "running", "")
