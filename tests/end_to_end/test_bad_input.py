"""Whatever is sent, one clear error comes back and the next good request works."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.wire import PushedFrame, pack_frame, unpack_mask

WAIT_S = 30.0
GOOD = cv2.imencode(".jpg", np.full((90, 160, 3), 220, np.uint8))[1].tobytes()


def huge_png() -> bytes:
    """30,000 x 30,000 pixels, valid throughout, in under 3 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + 30_000 * 3)
    rows = b"".join(packer.compress(row) for _ in range(300)) + packer.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BAD_PICTURES = {
    "not an image": (b"this is not an image", 422, "invalid-picture"),
    "a truncated jpeg": (GOOD[: len(GOOD) // 2], 422, "invalid-picture"),
    "a truncated png": (
        cv2.imencode(".png", np.zeros((90, 160, 3), np.uint8))[1].tobytes()[:-20], 422, "invalid-picture",
    ),
    "a huge png": (huge_png(), 413, "payload-too-large"),
    "a gif": (b"GIF89a" + bytes(40), 422, "invalid-picture"),
}  # fmt: skip


def check_problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:surgseg:problem:{slug}"
    assert all(problem[part] for part in ("title", "detail", "found", "expected", "remedy"))
    assert "Traceback" not in answer.text
    return problem


@pytest.fixture
def post(server: Any) -> Iterator[Any]:
    """Post to /v1/segment; afterwards a good picture must still be answered."""

    def send(content: Any = b"", **options: Any) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/segment", content=content, timeout=WAIT_S, **options)

    yield send
    assert send(GOOD).status_code == 200
    assert httpx.get(f"{server.url}/readyz", timeout=WAIT_S).status_code == 200


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_gets_a_problem_document(post: Any, name: str) -> None:
    data, status, slug = BAD_PICTURES[name]
    check_problem(post(data), status, slug)


def test_an_empty_body_gets_a_problem_document(post: Any) -> None:
    assert "empty" in check_problem(post(b""), 400, "invalid-request")["found"]


@pytest.mark.parametrize("query", [{"mask": "tiff"}, {"size": "huge"}])
def test_an_unknown_parameter_value_names_the_known_ones(post: Any, query: dict[str, str]) -> None:
    problem = check_problem(post(GOOD, params=query), 400, "invalid-request")
    assert next(iter(query)) in problem["found"]
    assert ("overlay" if "mask" in query else "source") in problem["expected"]


def test_a_form_without_a_file_gets_a_problem_document(post: Any, server: Any) -> None:
    for options in (
        {"files": {"picture": ("a.jpg", GOOD, "image/jpeg")}},
        {"content": b"--x\r\nnonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": GOOD, "headers": {"content-type": "multipart/form-data"}},
    ):
        answer = httpx.post(f"{server.url}/v1/segment", timeout=WAIT_S, **options)
        assert "file" in check_problem(answer, 400, "invalid-request")["expected"]


def test_unknown_addresses_and_methods_get_problem_documents(post: Any, server: Any) -> None:
    check_problem(httpx.get(f"{server.url}/v1/nothing"), 404, "http-error")
    check_problem(httpx.get(f"{server.url}/v1/segment"), 405, "http-error")
    check_problem(httpx.delete(f"{server.url}/healthz"), 405, "http-error")


def test_a_body_over_the_limit_is_refused_while_it_is_read(launch_server: Any) -> None:
    server = launch_server(SURGSEG_MAX_BODY_BYTES="100000")
    sent_bytes = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent_bytes
        for _ in range(2000):
            sent_bytes += 10_000
            yield bytes(10_000)

    url = f"{server.url}/v1/segment"
    check_problem(httpx.post(url, content=bytes(100_001), timeout=WAIT_S), 413, "payload-too-large")
    with httpx.Client(timeout=WAIT_S) as client:
        check_problem(client.post(url, content=endless()), 413, "payload-too-large")
    assert httpx.post(url, content=GOOD, timeout=WAIT_S).status_code == 200
    memory = [line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if "resident" in line][-1]
    assert float(memory.split()[-1]) < 500e6
    with connect(f"{server.ws_url}/v1/stream", open_timeout=WAIT_S) as client_socket:
        client_socket.recv(WAIT_S)
        with pytest.raises(ConnectionClosed) as closed:
            client_socket.send(bytes(200_000))
            client_socket.recv(WAIT_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


def test_a_body_that_does_not_come_is_given_up(launch_server: Any) -> None:
    server = launch_server(SURGSEG_BODY_TIMEOUT_S="0.3")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as client_socket:
        client_socket.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert b"400 Bad Request" in client_socket.recv(4096)
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as client_socket:
        client_socket.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    assert httpx.post(f"{server.url}/v1/segment", content=GOOD, timeout=WAIT_S).status_code == 200
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.output)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("codec=av1", "jpeg, png, h264, hevc"),
        ("codec=bmp", "jpeg, png"),
        ("mask=tiff", "png, palette, rle, polygons"),
        ("mask=overlay", "png, palette, rle, polygons"),
        ("mode=some", "latest, every"),
    ],
)
def test_an_unknown_stream_option_names_the_known_ones_and_closes(
    post: Any, server: Any, query: str, named: str
) -> None:
    with connect(f"{server.ws_url}/v1/stream?{query}", open_timeout=WAIT_S) as client_socket:
        event = json.loads(client_socket.recv(WAIT_S))
        assert (event["type"], event["slug"], event["fatal"]) == ("error", "invalid-request", True)
        assert named in event["expected"]
        with pytest.raises(ConnectionClosed) as closed:
            client_socket.recv(WAIT_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize(("codec", "other"), [("jpeg", "png"), ("png", "jpeg")])
@pytest.mark.parametrize("mode", ["latest", "every"])
def test_a_stream_survives_every_bad_message_and_names_it(
    post: Any, server: Any, mode: str, codec: str, other: str
) -> None:
    image = np.full((90, 160, 3), 220, np.uint8)
    encoded = {name: cv2.imencode(f".{name}", image)[1].tobytes() for name in ("jpeg", "png")}
    bad = [(data, slug) for name, (data, _, slug) in BAD_PICTURES.items() if other not in name]
    url = f"{server.ws_url}/v1/stream?mode={mode}&codec={codec}"
    with connect(url, open_timeout=WAIT_S) as client_socket:

        def send(message: str | bytes) -> dict[str, Any]:
            client_socket.send(message)
            event = json.loads(client_socket.recv(WAIT_S))
            assert (event["type"], event["fatal"]) == ("error", False)
            return event

        assert json.loads(client_socket.recv(WAIT_S))["type"] == "ready"
        assert "sequence" not in send("a text message")
        assert "3 bytes" in send(b"abc")["found"]
        assert "no picture" in send(bytes(8))["found"]
        for number, (data, slug) in enumerate(bad, start=1):
            event = send(pack_frame(PushedFrame(0, data)))
            assert (event["sequence"], event["slug"]) == (number, slug)
        assert f"is {other}" in send(pack_frame(PushedFrame(0, encoded[other])))["found"]
        client_socket.send(pack_frame(PushedFrame(5, encoded[codec])))
        header, _ = unpack_mask(client_socket.recv(WAIT_S))
    assert header.captured_at_us == 5
    assert header.dropped == {"undecodable": len(bad) + 1}
    assert header.received == header.sequence == len(bad) + 2


def test_in_a_lossless_stream_errors_keep_their_place_among_the_masks(server: Any) -> None:
    pictures = [GOOD if number % 3 else b"bad" for number in range(1, 13)]
    with connect(f"{server.ws_url}/v1/stream?mode=every", open_timeout=WAIT_S) as client_socket:
        client_socket.recv(WAIT_S)
        for picture in pictures:
            client_socket.send(pack_frame(PushedFrame(0, picture)))
        answered = []
        for _ in pictures:
            message = client_socket.recv(WAIT_S)
            is_event = isinstance(message, str)
            answered.append(json.loads(message)["sequence"] if is_event else unpack_mask(message)[0].sequence)
    assert answered == list(range(1, 13))


def test_a_socket_at_an_unknown_address_is_refused(post: Any, server: Any) -> None:
    with pytest.raises(Exception, match="404"), connect(f"{server.ws_url}/v1/nothing", open_timeout=WAIT_S):
        pass


def run_serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "serve", "--port", "0", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )


def check_refusal(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("surgseg serve: ")
    for part in parts:
        assert part in lines[0]


def test_a_missing_bundle_ends_the_start_with_one_line(tmp_path: Path) -> None:
    check_refusal(run_serve("--bundle", str(tmp_path / "none")), "There is no bundle", "Check the path")


@pytest.mark.parametrize("name", ["model.onnx", "golden/mask.png"])
def test_a_flipped_byte_ends_the_start_with_one_line(small_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(small_bundle, folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    check_refusal(run_serve("--bundle", str(folder)), name, "SHA-256", "changed after export")


def test_a_port_in_use_ends_the_start_with_one_line(small_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_serve("--bundle", str(small_bundle), "--port", port)
    check_refusal(done, f"port {port}", "in use", "--port")


def test_an_unknown_backend_ends_the_start_with_one_line(small_bundle: Path) -> None:
    done = run_serve("--bundle", str(small_bundle), "--backend", "abacus")
    check_refusal(done, "'abacus'", "onnxruntime-cpu")


def test_a_bad_setting_ends_the_start_with_one_line(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGSEG_MAX_STREAMS", "many")
    check_refusal(run_serve("--bundle", str(small_bundle)), "SURGSEG_MAX_STREAMS", "'many'")
