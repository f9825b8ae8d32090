"""The audit record of a real service: what a kill leaves of it, and its masks drawn over the video again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service.__main__ import main
from service.app import create_app
from service.audit.entries import MaskEntry
from service.audit.record import Fault, Record
from service.client import Client
from service.contract.bundle import open_bundle
from service.contract.masks import decode_mask
from service.errors import InvalidRequestError
from service.settings import Settings
from service.streams.video import read_video
from service.streams.video_units import VideoUnits
from service.wire import PushedFrame, encode_picture, pack_frame, unpack_mask
from tests.bitstreams import draw_code, read_code
from tests.sources import write_codes

WAIT_S = 30.0
COUNT = 30


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with B-frames, whose pictures tell their number: 0 to COUNT - 1."""
    path = tmp_path_factory.mktemp("clip") / "codes.mp4"
    write_codes(path, range(COUNT), b_frames=2)
    return path


@pytest.fixture
def launch(launch_server: Callable[..., Any], clip: Path, tmp_path: Path) -> Callable[..., Any]:
    def launch_it(**settings: str) -> Any:
        return launch_server(
            SURGSEG_AUDIT=str(tmp_path / "audit"), SURGSEG_FILES=str(clip.parent), **settings
        )

    return launch_it


@contextmanager
def open_stream(server: Any, query: str) -> Iterator[tuple[ClientConnection, dict[str, Any]]]:
    with connect(f"{server.ws_url}/v1/stream?{query}", open_timeout=WAIT_S, max_size=2**25) as socket:
        message = socket.recv(WAIT_S)
        assert isinstance(message, str)
        yield socket, json.loads(message)


def read_masks(folder: Path, run: str | None = None) -> dict[int, MaskEntry]:
    record = Record(folder)
    masks = [
        entry for name, entry in record.entries() if run in (None, name) and isinstance(entry, MaskEntry)
    ]
    assert {problem.fault for problem in record.problems} <= {Fault.CUT}
    return {mask.sequence: mask for mask in masks}


def test_a_killed_service_leaves_everything_up_to_the_last_second_and_nothing_wrong(
    launch: Callable[..., Any], tmp_path: Path, small_bundle: Path
) -> None:
    server = launch()
    shown: list[tuple[float, int, np.ndarray]] = []
    with open_stream(server, "codec=png&mode=latest") as (socket, ready), pytest.raises(ConnectionClosed):
        assert ready["recorded"] is True
        kill_at = time.monotonic() + 2.6
        for number in range(100_000):
            if time.monotonic() >= kill_at:
                server.process.send_signal(signal.SIGKILL)
                killed_at = time.monotonic()
                server.process.wait()
            picture = encode_picture(draw_code(number % 256), "png")
            socket.send(pack_frame(PushedFrame(1 + number, picture)))
            message = socket.recv(WAIT_S)
            assert isinstance(message, bytes)
            header, payload = unpack_mask(message)
            shown.append((time.monotonic(), header.sequence, decode_mask(payload, "png")))
            time.sleep(0.02)

    recorded = read_masks(tmp_path / "audit")
    due = {sequence for at, sequence, _ in shown if at < killed_at - 1.0}
    assert len(due) > 5
    assert due <= set(recorded)
    fingerprint = open_bundle(small_bundle).fingerprint
    for _, sequence, mask_hw in shown:
        if sequence in recorded:
            entry = recorded[sequence]
            assert np.array_equal(entry.mask_hw, mask_hw)
            assert read_code(mask_hw) == (sequence - 1) % 256
            assert (entry.captured_at_us, entry.model) == (sequence, fingerprint)

    again = launch()  # the folder is free, and the chain goes on
    assert again.stop() == 0
    record = Record(tmp_path / "audit")
    runs = {run for run, _ in record.entries()}
    assert len(runs) == 2
    assert {problem.fault for problem in record.problems} <= {Fault.CUT}


def push_pictures(server: Any, clip: Path) -> str:
    with Client(server.url) as client, client.stream(codec="png", mode="every") as stream:
        for frame in read_video(clip):
            stream.push(frame.image_hwc)
        assert len(list(stream.finish())) == COUNT
        return str(stream.ready["stream"])


def push_units(server: Any, clip: Path) -> str:
    """Units in the order of decoding: the third is shown before the second, and the last stay in the decoder."""
    with (
        VideoUnits(clip, "h264") as video,
        Client(server.url) as client,
        client.stream(codec="h264", mode="every") as stream,
    ):
        assert video.is_reordered
        for _, unit in video.units():
            stream.push(unit)
        while stream.receive(0.5) is not None:
            pass
        return str(stream.ready["stream"])


def pull_file(server: Any, clip: Path) -> str:
    opened = httpx.post(f"{server.url}/v1/streams", json={"url": f"file:{clip.name}", "name": "theatre 3"})
    assert opened.status_code == 201, opened.text
    stream: str = opened.json()["id"]
    ends_at = time.monotonic() + WAIT_S
    while httpx.get(f"{server.url}/v1/streams").json()[-1]["state"] != "ended":
        assert time.monotonic() < ends_at
        time.sleep(0.05)
    return stream


def count_masks(folder: Path, stream: str) -> int:
    entries = [entry for _, entry in Record(folder).entries() if isinstance(entry, MaskEntry)]
    return sum(entry.stream == stream for entry in entries)


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_a_record_drawn_again_is_what_was_segmented_frame_by_frame(
    launch: Callable[..., Any],
    clip: Path,
    tmp_path: Path,
    small_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = launch()
    ids = {
        "pictures": push_pictures(server, clip),
        "units": push_units(server, clip),
        "pulled": pull_file(server, clip),
    }
    assert server.stop() == 0
    assert main(["segment", str(clip), "--out", str(tmp_path / "out"), "--bundle", str(small_bundle)]) == 0
    expected = [frame.image_hwc for frame in read_video(tmp_path / "out" / "overlays" / "codes.mp4")]
    assert len(expected) == COUNT
    audit = str(tmp_path / "audit")
    for name, stream in ids.items():
        out = tmp_path / f"{name}.mp4"
        assert main(["replay", audit, "--video", str(clip), "-o", str(out), "--stream", stream]) == 0
        drawn = [frame.image_hwc for frame in read_video(out)]
        assert len(drawn) == COUNT
        pairs = zip(drawn, expected, strict=True)
        far = [number for number, (one, other) in enumerate(pairs) if mean_difference(one, other) > 4]
        masks = count_masks(tmp_path / "audit", stream)
        assert len(far) <= COUNT - masks, (name, far)
        assert masks >= 5, name
        if name == "pictures":
            assert all(np.array_equal(one, other) for one, other in zip(drawn, expected, strict=True))
    assert mean_difference(expected[6], expected[7]) > 10, "a mask on its neighbour's frame would be seen"

    capsys.readouterr()
    assert main(["replay", audit]) == 0
    printed = capsys.readouterr().out
    assert f"frames 1 to {COUNT}: {COUNT} masks, 0 missing" in printed
    assert "'theatre 3', file:codes.mp4" in printed
    assert "arrival to mask" in printed
    assert main(["replay", audit, "--video", str(clip), "-o", str(tmp_path / "x.mp4")]) == 2
    assert "3 streams with masks" in capsys.readouterr().err


def test_without_the_setting_nothing_is_recorded_and_a_bad_folder_ends_the_start(
    server: Any, tmp_path: Path, small_bundle: Path
) -> None:
    with open_stream(server, "codec=png") as (_, ready):
        assert ready["recorded"] is False
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequestError, match="SURGSEG_AUDIT"):
        create_app(Settings(_env_file=None, bundle=small_bundle, audit=tmp_path / "file"))
