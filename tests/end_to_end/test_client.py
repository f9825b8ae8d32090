"""The client against a real service: its documented snippet, pictures, streams, errors and endings."""

from __future__ import annotations

import logging
import re
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import service.client
from service.client import Client
from service.contract.geometry import Image
from service.contract.masks import MASK_FORMATS
from service.errors import InvalidPictureError, InvalidRequestError, StreamError, UnavailableError
from service.mask_receiver import MaskMessage
from service.wire import encode_picture


def make_picture(seed: int = 0, width: int = 640, height: int = 360) -> Image:
    """Smooth blobs of light and dark, so that the threshold model gives real shapes."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def make_coded(number: int, width: int = 512, height: int = 288) -> Image:
    """A picture whose mask says `number`: eight upright bars, bright where the bit is set."""
    image_hwc = np.zeros((height, width, 3), np.uint8)
    for bit in range(8):
        if number >> bit & 1:
            image_hwc[:, bit * width // 8 : (bit + 1) * width // 8] = 255
    return image_hwc


def read_code(message: MaskMessage) -> int:
    height, width = message.mask_hw.shape
    return sum(int(message.mask_hw[height // 2, (2 * bit + 1) * width // 16]) << bit for bit in range(8))


def test_the_documented_snippet_runs_as_it_stands(server: Any, tmp_path: Path, monkeypatch: Any) -> None:
    snippet = re.search(r"^    from service\.client.*?(?=^\S)", service.client.__doc__ or "", re.S | re.M)
    assert snippet is not None
    lines = textwrap.dedent(snippet.group()).strip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 15
    frames = [make_picture(seed) for seed in range(10)]
    (tmp_path / "frame.jpg").write_bytes(encode_picture(frames[0], "jpeg"))
    monkeypatch.chdir(tmp_path)
    shown: list[Any] = []
    code = "\n".join(lines).replace("http://127.0.0.1:8000", server.url)
    exec(code, {"frames": frames, "show": lambda mask_hw, latency_ms: shown.append((mask_hw, latency_ms))})
    assert 1 <= len(shown) <= len(frames)
    assert all(mask_hw.shape == (288, 512) and latency_ms["infer"] > 0 for mask_hw, latency_ms in shown)


def test_the_card_says_what_runs(server: Any) -> None:
    with Client(server.url) as client:
        assert client.model()["name"] == "small-threshold"


@pytest.mark.parametrize("mask", MASK_FORMATS)
def test_a_picture_gives_its_exact_mask_in_every_form(server: Any, mask: Any) -> None:
    image_hwc = make_picture(width=512, height=288)
    expected_hw = (image_hwc.sum(axis=2, dtype=np.int32) > 3 * 127).astype(np.uint8)
    with Client(server.url) as client:
        result = client.segment(image_hwc, mask=mask)
    assert np.array_equal(result.mask_hw, expected_hw)
    assert {"decode", "prepare", "wait", "infer", "encode"} <= set(result.timing_ms)


def test_size_source_restores_the_picture_and_model_leaves_the_model_s_scale(
    server: Any, tmp_path: Path
) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_picture(make_picture(width=801, height=600), "jpeg"))
    with Client(server.url) as client:
        assert client.segment(path).mask_hw.shape == (600, 801)
        assert client.segment(str(path), size="model").mask_hw.shape == (288, 384)
        assert client.segment(path.read_bytes()).mask_hw.shape == (600, 801)


def test_bytes_that_are_no_picture_raise_the_service_s_error(server: Any, tmp_path: Path) -> None:
    with Client(server.url) as client:
        with pytest.raises(InvalidPictureError, match="JPEG or PNG"):
            client.segment(b"not a picture")
        with pytest.raises(InvalidPictureError, match=r"absent\.jpg"):
            client.segment(tmp_path / "absent.jpg")
        with pytest.raises(InvalidPictureError, match="float64"):
            client.segment(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
        assert client.segment(make_picture()).mask_hw.shape == (360, 640)


def test_every_frame_is_answered_in_order_with_its_own_mask(server: Any) -> None:
    codes = [(number * 37) % 256 for number in range(120)]
    answers: list[MaskMessage] = []
    with Client(server.url) as client, client.stream(codec="png", mode="every") as stream:
        for number, code in enumerate(codes):
            assert stream.push(make_coded(code), captured_at_us=1000 + number) == 1000 + number
            answers.extend(stream.arrived())
        answers.extend(stream.finish())
    assert [message.sequence for message in answers] == list(range(1, len(codes) + 1))
    assert [message.captured_at_us for message in answers] == list(range(1000, 1000 + len(codes)))
    assert [read_code(message) for message in answers] == codes
    assert (answers[-1].received, answers[-1].dropped, answers[-1].skipped) == (len(codes), {}, 0)
    assert {(message.width, message.height) for message in answers} == {(512, 288)}


def test_pushing_and_reading_in_two_threads_works_and_ends(server: Any) -> None:
    with (
        Client(server.url) as client,
        client.stream(codec="png", mode="every", mask="rle", capacity=2) as stream,
    ):

        def push() -> None:
            for code in range(60):
                stream.push(make_coded(code))
            stream.finish()

        pusher = threading.Thread(target=push)
        pusher.start()
        codes = [read_code(message) for message in stream]
        pusher.join(20)
    assert codes == list(range(60))


def test_live_frames_are_answered_or_counted_as_dropped(launch_server: Callable[..., Any]) -> None:
    server = launch_server(SURGSEG_DEADLINE_S="60")
    pictures = [encode_picture(make_coded(code, 1280, 720), "jpeg") for code in range(50)]
    with Client(server.url) as client, client.stream() as stream:
        for picture in pictures:
            stream.push(picture)
        answers = list(stream.finish())
        (account,) = client.streams()
    last = answers[-1]
    assert last.sequence == len(pictures), "nothing newer can have replaced the last frame"
    assert (account["received"], account["dropped"]) == (last.received, last.dropped)
    assert last.received == len(pictures) == len(answers) + sum(last.dropped.values()) + last.skipped
    assert all(read_code(message) == message.sequence - 1 for message in answers)


def test_nobody_reading_a_lossless_stream_is_said_clearly_and_nothing_hangs(server: Any) -> None:
    with Client(server.url, timeout_s=2.0) as client, client.stream(mode="every", capacity=4) as stream:
        picture = encode_picture(make_coded(1), "jpeg")
        with pytest.raises(StreamError, match="lie unread"):
            for _ in range(40):
                stream.push(picture)
        assert len(list(stream.finish())) >= 4


def test_one_bad_picture_is_told_and_the_stream_goes_on(server: Any) -> None:
    events: list[dict[str, Any]] = []
    with Client(server.url) as client, client.stream(mode="every", on_event=events.append) as stream:
        stream.push(make_coded(1))
        stream.push(b"not a picture")
        stream.push(make_coded(2))
        stream.push(b"neither is this, and it is the last")
        answers = list(stream.finish())
    assert [message.sequence for message in answers] == [1, 3]
    assert answers[-1].dropped["undecodable"] >= 1
    assert [(event["type"], event["slug"], event["sequence"]) for event in events] == [
        ("error", "invalid-picture", 2),
        ("error", "invalid-picture", 4),
    ]


def test_errors_that_nobody_listens_to_are_logged(server: Any, caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    with Client(server.url) as client, client.stream(mode="every") as stream:
        stream.push(b"not a picture")
        assert list(stream.finish()) == []
    assert "JPEG or PNG" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("codec", "gif"), ("mask", "svg"), ("mode", "some")])
def test_an_unknown_option_raises_the_service_s_error(server: Any, name: str, value: str) -> None:
    with Client(server.url) as client, pytest.raises(InvalidRequestError, match=value):
        client.stream(**{name: value})  # type: ignore[arg-type]


def test_using_a_stream_that_has_ended_is_refused(server: Any) -> None:
    with Client(server.url) as client:
        stream = client.stream()
        stream.finish()
        with pytest.raises(InvalidRequestError, match="had ended"):
            stream.push(make_coded(1))
        stream.close()
        stream.close()
        assert list(stream) == []


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "", "http://"])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        Client(url)


def test_nothing_at_the_address_is_one_clear_error() -> None:
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(UnavailableError, match="does not answer"):
            client.model()
        with pytest.raises(UnavailableError, match="does not answer"):
            client.stream()


def test_a_web_socket_address_serves_both(server: Any) -> None:
    with Client(f"{server.ws_url}/v1/stream") as client, client.stream() as stream:
        assert client.model()["name"] == stream.ready["model"]["name"]


def test_a_service_that_shuts_down_answers_what_it_has_and_says_so(launch_server: Callable[..., Any]) -> None:
    running = launch_server()
    events: list[dict[str, Any]] = []
    with Client(running.url) as client, client.stream(mode="every", on_event=events.append) as stream:
        stream.push(make_coded(5))
        assert read_code(next(iter(stream))) == 5
        assert running.stop() == 0
        with pytest.raises(UnavailableError, match="shutting down"):
            next(iter(stream))
        with pytest.raises(UnavailableError, match="shutting down"):
            stream.push(make_coded(6))
    assert events[-1]["type"] == "closing"


def test_a_service_that_dies_is_one_clear_error(launch_server: Callable[..., Any]) -> None:
    running = launch_server()
    with Client(running.url) as client, client.stream() as stream:
        running.process.kill()
        running.process.wait()
        with pytest.raises(StreamError, match="was lost"):
            next(iter(stream))
        with pytest.raises(StreamError, match="was lost"):
            stream.push(make_coded(1))


def test_streams_beyond_the_limit_are_refused_and_the_next_one_after_a_close_works(
    launch_server: Callable[..., Any],
) -> None:
    running = launch_server(SURGSEG_MAX_STREAMS="1")
    with Client(running.url) as client:
        with client.stream() as stream, pytest.raises(UnavailableError):
            stream.push(make_coded(1))
            client.stream()
        for _ in range(50):
            try:
                with client.stream() as stream:
                    stream.push(make_coded(3))
                    assert [read_code(message) for message in stream.finish()] == [3]
                return
            except UnavailableError:
                threading.Event().wait(0.05)  # the place is free once the service has noticed the close
        pytest.fail("the place was never free again")
