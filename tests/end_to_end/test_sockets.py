"""WebSocket `/v1/stream` on a real server: order, codes, back-pressure, accounts."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from socket import SHUT_RDWR
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service.contract.masks import decode_mask
from service.wire import MaskHeader, PushedFrame, pack_frame, unpack_mask

WAIT_S = 30.0
BITS = 9


def draw_code(code: int, suffix: str) -> bytes:
    """A 720p picture with the bits of `code` as bright and dark columns."""
    bits = [(code >> bit) & 1 for bit in range(BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 200 + 20, 1280 // BITS + 1)[:1280]
    image_hwc = np.repeat(np.repeat(row[None, :, None], 720, axis=0), 3, axis=2)
    return cv2.imencode(suffix, image_hwc)[1].tobytes()


def read_code(mask_hw: np.ndarray) -> int:
    height, width = mask_hw.shape
    columns = [(2 * bit + 1) * (1280 // BITS + 1) // 2 * width // 1280 for bit in range(BITS)]
    bits = [int(mask_hw[height // 2, min(column, width - 1)]) for column in columns]
    return sum(bit << index for index, bit in enumerate(bits))


@pytest.fixture
def open_stream(server: Any) -> Iterator[Callable[..., ClientConnection]]:
    """A function that opens a stream and reads its `ready`; the streams end with the test."""
    with ExitStack() as opened:

        def open_it(query: str = "", **options: Any) -> ClientConnection:
            url = f"{server.ws_url}/v1/stream{query}"
            socket = opened.enter_context(connect(url, open_timeout=WAIT_S, max_size=2**25, **options))
            opened.callback(cut, socket)
            assert receive_event(socket)["type"] == "ready"
            return socket

        yield open_it


def cut(socket: ClientConnection) -> None:
    """Pull the cable: no close frame, and whoever is stuck in `send` gets free."""
    with suppress(OSError):
        socket.socket.shutdown(SHUT_RDWR)


def receive(socket: ClientConnection) -> tuple[MaskHeader, bytes]:
    message = socket.recv(WAIT_S)
    assert isinstance(message, bytes), message
    return unpack_mask(message)


def receive_event(socket: ClientConnection) -> dict[str, Any]:
    message = socket.recv(WAIT_S)
    assert isinstance(message, str)
    return json.loads(message)


def metric(server: Any, name: str, **labels: str) -> float:
    total = 0.0
    for line in httpx.get(f"{server.url}/metrics", timeout=WAIT_S).text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


def test_the_first_message_says_what_the_stream_is(server: Any) -> None:
    with connect(f"{server.ws_url}/v1/stream?mask=rle&mode=every&codec=png") as socket:
        ready = json.loads(socket.recv(WAIT_S))
        assert socket.protocol.extensions == [], "no compression, although the client offers it"
    assert ready["type"] == "ready"
    assert ready["protocol_version"] == 1
    fingerprint = httpx.get(f"{server.url}/v1/model").json()["running"]["fingerprint"]
    assert ready["model"] == {"name": "small-threshold", "version": "1", "fingerprint": fingerprint}
    assert [info["name"] for info in ready["classes"]] == ["background", "instrument"]
    assert ready["input_size"] == {"height": 288, "width": 512}
    assert (ready["codec"], ready["mask"], ready["mode"]) == ("png", "rle", "every")


@pytest.mark.parametrize("mask_format", ["png", "rle", "polygons"])
@pytest.mark.parametrize(("codec", "suffix"), [("jpeg", ".jpg"), ("png", ".png")])
def test_every_frame_is_answered_in_order_by_its_own_mask(
    open_stream: Callable[..., ClientConnection], codec: str, suffix: str, mask_format: str
) -> None:
    socket = open_stream(f"?codec={codec}&mask={mask_format}&mode=every")
    codes = [(number * 211 + 5) % 2**BITS for number in range(20)]

    def push() -> None:
        for number, code in enumerate(codes):
            socket.send(pack_frame(PushedFrame(10**15 + number, draw_code(code, suffix))))

    pusher = threading.Thread(target=push, daemon=True)
    pusher.start()
    for number, code in enumerate(codes):
        header, payload = receive(socket)
        assert header.sequence == number + 1
        assert header.captured_at_us == 10**15 + number
        assert (header.width, header.height, header.mask) == (1280, 720, mask_format)
        assert read_code(decode_mask(payload, mask_format)) == code
        assert header.dropped == {}
        assert header.skipped == 0
        assert list(header.latency_ms) == ["decode", "prepare", "wait", "infer", "encode"]
        assert all(value >= 0 for value in header.latency_ms.values())
    pusher.join(WAIT_S)


def test_live_masks_are_ordered_belong_to_their_frames_and_the_accounts_agree(
    open_stream: Callable[..., ClientConnection],
) -> None:
    """Frames come far faster than they can be decoded: most are dropped, none is answered wrongly."""
    socket = open_stream("?codec=jpeg&mode=latest")
    sent = 120
    pictures = [draw_code(number, ".jpg") for number in range(sent)]
    for number, picture in enumerate(pictures):
        socket.send(pack_frame(PushedFrame(number, picture)))
    last = 0
    answers = 0
    while last < sent:
        header, payload = receive(socket)
        answers += 1
        assert header.sequence > last
        last = header.sequence
        assert header.captured_at_us == last - 1
        assert read_code(decode_mask(payload, "png")) == last - 1
    assert header.received == sent
    assert answers + header.skipped + sum(header.dropped.values()) == sent
    assert header.dropped.get("superseded", 0) > 0, "nothing was superseded, so the test shows nothing"


def test_a_real_time_stream_is_answered_frame_by_frame(open_stream: Callable[..., ClientConnection]) -> None:
    socket = open_stream()
    for number in range(30):
        socket.send(pack_frame(PushedFrame(number, draw_code(number, ".jpg"))))
        header, payload = receive(socket)
        assert header.sequence == number + 1
        assert read_code(decode_mask(payload, "png")) == number


def test_a_viewer_who_does_not_read_skips_old_masks_and_sees_the_newest(
    open_stream: Callable[..., ClientConnection], server: Any
) -> None:
    """Its masks pile up nowhere: what it has not fetched gives way to what is newer, and is counted."""
    socket = open_stream(
        "?codec=png&mask=polygons&deadline_ms=30000", max_queue=1
    )  # noise has costly outlines
    rng = np.random.default_rng(5)
    noise = cv2.imencode(".png", rng.integers(0, 256, (288, 512, 3), dtype=np.uint8))[1].tobytes()
    before = metric(server, "surgseg_viewer_skipped_total")
    number = 0
    while metric(server, "surgseg_viewer_skipped_total") < before + 5:
        for _ in range(10):
            number += 1
            socket.send(pack_frame(PushedFrame(number, noise)))
            time.sleep(0.02)
        assert number < 3000
    socket.send(pack_frame(PushedFrame(10**9, noise)))
    header, _ = receive(socket)
    sequences = [header.sequence]
    while header.captured_at_us != 10**9:
        header, _ = receive(socket)
        sequences.append(header.sequence)
    assert sequences == sorted(set(sequences))
    assert header.skipped >= 5
    assert len(sequences) + header.skipped + sum(header.dropped.values()) == header.received == number + 1


def test_a_lossless_client_that_does_not_read_is_held_back_and_loses_nothing(
    server: Any, open_stream: Callable[..., ClientConnection]
) -> None:
    other = open_stream("?codec=png&deadline_ms=30000")
    rng = np.random.default_rng(6)
    noise = cv2.imencode(".png", rng.integers(0, 256, (288, 512, 3), dtype=np.uint8))[1].tobytes()
    total = 60

    async def scenario() -> None:
        url = f"{server.ws_url}/v1/stream?codec=png&mode=every"
        async with connect_async(url, max_queue=1, open_timeout=WAIT_S) as socket:
            assert json.loads(await socket.recv())["type"] == "ready"
            sent = 0

            async def push() -> None:
                nonlocal sent
                for number in range(total):
                    await socket.send(pack_frame(PushedFrame(number, noise)))
                    sent += 1

            pusher = asyncio.create_task(push())
            at_rest = -1
            while at_rest != sent:
                at_rest = sent
                other.send(pack_frame(PushedFrame(1, noise)))
                await asyncio.to_thread(receive, other)  # the other stream does not notice
                await asyncio.sleep(1.0)
            assert at_rest < total, "the sender was never held back, so the test shows nothing"
            for number in range(total):
                header, _ = unpack_mask(await asyncio.wait_for(socket.recv(), WAIT_S))
                assert header.captured_at_us == number
                assert header.dropped == {}
            await pusher

    asyncio.run(scenario())


def test_streams_do_not_mix_their_frames(open_stream: Callable[..., ClientConnection], server: Any) -> None:
    sockets = [open_stream("?mode=every&codec=png") for _ in range(4)]
    for number in range(8):
        for index, socket in enumerate(sockets):
            socket.send(pack_frame(PushedFrame(0, draw_code(number * 16 + index, ".png"))))
        for index, socket in enumerate(sockets):
            assert read_code(decode_mask(receive(socket)[1], "png")) == number * 16 + index
    listed = httpx.get(f"{server.url}/v1/streams", timeout=WAIT_S).json()
    mine = [stream for stream in listed if stream["mode"] == "every" and stream["received"] == 8]
    assert len(mine) == 4
    assert len({stream["label"] for stream in mine}) == 4


def test_a_client_that_vanishes_leaves_nothing_behind(server: Any) -> None:
    def open_streams() -> int:
        return len(httpx.get(f"{server.url}/v1/streams", timeout=WAIT_S).json())

    before = open_streams()
    for _ in range(3):
        with connect(f"{server.ws_url}/v1/stream", open_timeout=WAIT_S) as socket:
            assert receive_event(socket)["type"] == "ready"
            for number in range(5):
                socket.send(pack_frame(PushedFrame(number, draw_code(number, ".jpg"))))
            cut(socket)
    ends_at = time.monotonic() + WAIT_S
    while open_streams() > before:
        assert time.monotonic() < ends_at
        time.sleep(0.05)
    assert server.process.poll() is None


def test_the_stream_limit_is_told_with_a_reason(launch_server: Callable[..., Any]) -> None:
    server = launch_server(SURGSEG_MAX_STREAMS="1")
    with connect(f"{server.ws_url}/v1/stream", open_timeout=WAIT_S) as first:
        first.recv(WAIT_S)
        with connect(f"{server.ws_url}/v1/stream", open_timeout=WAIT_S) as second:
            event = receive_event(second)
            assert (event["type"], event["slug"], event["fatal"]) == ("error", "unavailable", True)
            with pytest.raises(ConnectionClosed) as closed:
                second.recv(WAIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        assert "1 streams are open" in closed.value.rcvd.reason
        first.send(pack_frame(PushedFrame(0, draw_code(3, ".jpg"))))
        assert read_code(decode_mask(receive(first)[1], "png")) == 3
    ends_at = time.monotonic() + WAIT_S
    while httpx.get(f"{server.url}/v1/streams", timeout=WAIT_S).json():
        assert time.monotonic() < ends_at
    with connect(f"{server.ws_url}/v1/stream", open_timeout=WAIT_S) as third:
        assert receive_event(third)["type"] == "ready"
