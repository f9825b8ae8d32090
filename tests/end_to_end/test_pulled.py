"""Pulled streams on a real server: files, RTSP and MPEG-TS, any number of viewers, what is refused."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.client import Client
from service.contract.geometry import crop_mask, fit_image, plan_fit
from service.contract.masks import decode_mask
from service.contract.model_card import InputSize
from service.errors import ForbiddenError, NotFoundError
from service.streams.video import read_video
from service.wire import unpack_mask
from tests.bitstreams import encode_codes, read_code
from tests.conftest import Server
from tests.pulled_rig import (
    COUNT,
    WAIT_S,
    Viewer,
    await_state,
    check_identity,
    find_decoders,
    info,
    pulled,
)
from tests.sources import (
    FPS,
    RtspServer,
    find_free_port,
    sending_datagrams,
)


def test_a_lossless_file_waits_for_its_viewer_gives_every_frame_in_order_and_ends(
    puller: Server, watch: Callable[..., Viewer]
) -> None:
    with pulled(puller, "file:codes.mp4", mode="every", name="a recording") as stream_id:
        time.sleep(0.5)
        assert info(puller, stream_id)["segmented"] == 0
        viewer = watch(stream_id, "rle")
        received = viewer.receive_all()
        assert [code for _, code in received] == list(range(COUNT))
        assert [header.sequence for header, _ in received] == list(range(1, COUNT + 1))
        np.testing.assert_allclose(
            [header.pts_s for header, _ in received], np.arange(COUNT) / FPS, atol=1e-6
        )
        assert received[-1][0].dropped == {}
        assert viewer.socket.close_code == 1000
        account = {"received": COUNT, "dropped": {}, "skipped": 0}
        assert viewer.events[-1] == {"type": "closing", "reason": "The source is at its end.", **account}
        described = info(puller, stream_id)
        assert (described["state"], described["codec"], described["name"]) == ("ended", "h264", "a recording")
        assert (described["width"], described["height"], described["source"]) == (320, 192, "file:codes.mp4")
        assert described["received"] == described["segmented"] == COUNT
        late = watch(stream_id)
        assert late.receive_all() == []
        assert late.socket.close_code == 1000
    gone = httpx.get(f"{puller.url}/v1/streams/{stream_id}", timeout=WAIT_S)
    assert (gone.status_code, gone.json()["slug"]) == (404, "not-found")


def test_a_real_clip_gives_the_masks_that_it_gives_offline(
    puller: Server, watch: Callable[..., Viewer], videos: Path, data_folder: Path
) -> None:
    clip = data_folder / "clips" / "cholecystectomy_480p_25fps_3s.mp4"
    (videos / clip.name).write_bytes(clip.read_bytes())
    with pulled(puller, f"file:{clip.name}", mode="every") as stream_id:
        viewer = watch(stream_id)
        for picture in read_video(clip):
            header, payload = unpack_mask(next(m for m in viewer.socket if isinstance(m, bytes)))
            assert header.pts_s == pytest.approx(picture.pts_s)
            fit = plan_fit(*picture.image_hwc.shape[:2], InputSize(height=288, width=512), "letterbox")
            canvas_hwc = fit_image(picture.image_hwc, fit)
            expected_hw = crop_mask((canvas_hwc.sum(2, dtype=np.int32) > 3 * 127).astype(np.uint8), fit)
            assert (decode_mask(payload, "png") == expected_hw).mean() > 0.98  # edges: another scaler
        assert [json.loads(rest)["type"] for rest in viewer.socket if isinstance(rest, str)] == ["closing"]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_viewers_of_an_rtsp_camera_each_get_their_format_and_the_same_masks(
    puller: Server, watch: Callable[..., Viewer], camera: RtspServer, transport: str
) -> None:
    with pulled(puller, camera.url, transport=transport) as stream_id:
        as_png, as_rle, as_polygons = (watch(stream_id, mask) for mask in ("png", "rle", "polygons"))
        received = {
            viewer.mask: [viewer.receive() for _ in range(30)] for viewer in (as_png, as_rle, as_polygons)
        }
        for numbered in received.values():
            check_identity(numbered)
        seen = [{header.sequence: code for header, code in numbered} for numbered in received.values()]
        both = seen[0].keys() & seen[1].keys() & seen[2].keys()
        assert len(both) > 10
        assert all(seen[0][number] == seen[1][number] == seen[2][number] for number in both)
        described = info(puller, stream_id)
        assert (described["state"], described["viewers"], described["source"]) == ("running", 3, camera.url)


def test_identity_and_accounts_hold_while_frames_are_dropped(
    puller: Server, watch: Callable[..., Viewer], camera: RtspServer
) -> None:
    with pulled(puller, camera.url) as stream_id:
        viewer = watch(stream_id)
        received = [viewer.receive() for _ in range(5)]
        (decoder,) = find_decoders(puller)
        for _ in range(2):
            decoder.suspend()
            time.sleep(0.7)
            decoder.resume()
            received += [viewer.receive() for _ in range(15)]
        check_identity(received)
        header = received[-1][0]
        assert header.dropped, "nothing was dropped, so the test shows nothing"
        assert header.received >= header.sequence


@pytest.mark.parametrize("sender", ["pyav", "ffmpeg"])
def test_mpeg_ts_over_udp_is_received_and_a_sender_may_come_back(
    puller: Server, watch: Callable[..., Viewer], videos: Path, sender: str
) -> None:
    port = find_free_port(socket.SOCK_DGRAM)
    with pulled(puller, f"udp://127.0.0.1:{port}") as stream_id:
        viewer = watch(stream_id)
        with sending_datagrams(sender, videos / "codes.ts", port):
            received = [viewer.receive() for _ in range(20)]
        check_identity(received)
        await_state(puller, stream_id, "stalled", "restarting")
        with sending_datagrams(sender, videos / "codes.ts", port):
            await_state(puller, stream_id, "running")
            check_identity([viewer.receive() for _ in range(20)][-10:])


def test_a_looped_file_is_played_at_its_own_speed_over_and_over(
    puller: Server, watch: Callable[..., Viewer]
) -> None:
    with pulled(puller, "file:codes.mp4", loop=True) as stream_id:
        viewer = watch(stream_id)
        began_at = time.monotonic()
        received = [viewer.receive()]
        while received[-1][0].sequence < COUNT + 10:
            received.append(viewer.receive())
        assert (COUNT - 10) / FPS < time.monotonic() - began_at < 2 * COUNT / FPS
        for header, code in received:
            assert code == (header.sequence - 1) % COUNT
            assert header.pts_s == pytest.approx(code / FPS)


def test_what_is_not_allowed_is_refused_with_a_reason(puller: Server) -> None:
    def refusal(**order: Any) -> tuple[int, str]:
        answer = httpx.post(f"{puller.url}/v1/streams", json=order, timeout=WAIT_S)
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code, answer.json()["slug"]

    assert refusal(url="file:../codes.mp4") == (403, "forbidden")
    assert refusal(url="file:///etc/hostname") == (403, "forbidden")
    assert refusal(url="file:outside.mp4") == (403, "forbidden")
    assert refusal(url="file:missing.mp4") == (422, "stream-failed")
    assert refusal(url="http://127.0.0.1/video.mp4") == (400, "invalid-request")
    assert refusal(url="rtsps://127.0.0.1/scope") == (403, "forbidden")
    assert refusal(url="rtsp://127.0.0.1/scope", mode="every") == (400, "invalid-request")
    assert refusal(url="file:codes.mp4", speed=2) == (400, "invalid-request")
    assert refusal(mode="latest") == (400, "invalid-request")
    assert httpx.delete(f"{puller.url}/v1/streams/none", timeout=WAIT_S).status_code == 404
    with connect(f"{puller.ws_url}/v1/streams/none/masks") as viewer:
        event = json.loads(viewer.recv(WAIT_S))
        assert (event["slug"], event["fatal"]) == ("not-found", True)
        with pytest.raises(ConnectionClosed):
            viewer.recv(WAIT_S)
        assert viewer.close_code == 1008


def test_a_password_is_used_and_never_shown(
    puller: Server, watch: Callable[..., Viewer], tmp_path: Path
) -> None:
    server = RtspServer(encode_codes(range(COUNT)), tmp_path, secret="scope:open-sesame")
    try:
        with pulled(puller, server.url) as stream_id:
            watch(stream_id).receive()
            assert info(puller, stream_id)["source"] == f"rtsp://***@127.0.0.1:{server.port}/scope"
        with pulled(puller, server.url.replace("open-sesame", "shut-sesame")) as stream_id:
            failed = await_state(puller, stream_id, "failed")
            assert "401" in failed["reason"]
            assert "sesame" not in json.dumps(failed)
    finally:
        server.stop()
    assert [line for line in puller.output if "sesame" in line] == []


def test_the_client_opens_watches_and_closes_a_stream(puller: Server) -> None:
    with Client(puller.url) as client:
        opened = client.open_pulled("file:codes.mp4", mode="every", name="a recording")
        assert opened in client.streams()
        with client.masks(opened["id"], mask="rle", capacity=3) as masks:
            time.sleep(0.3)
            received = list(masks)
        assert [message.sequence for message in received] == list(range(1, COUNT + 1))
        assert [read_code(message.mask_hw) for message in received] == list(range(COUNT))
        assert (masks.unread, received[-1].pts_s) == (0, pytest.approx((COUNT - 1) / FPS))
        client.close_stream(opened["id"])
        with pytest.raises(NotFoundError, match=opened["id"]):
            client.close_stream(opened["id"])
        with pytest.raises(NotFoundError, match=opened["id"]):
            client.masks(opened["id"])
        with pytest.raises(ForbiddenError, match="outside"):
            client.open_pulled("file:../secret.mp4")


def test_an_unread_live_mask_gives_way_and_a_closed_stream_ends_the_iteration(puller: Server) -> None:
    with Client(puller.url) as client:
        opened = client.open_pulled("file:codes.mp4", loop=True)
        with client.masks(opened["id"], capacity=2) as masks:
            time.sleep(0.5)
            first = masks.receive()
            assert first is not None
            assert first.sequence > 2
            assert masks.unread > 0
            client.close_stream(opened["id"])
            assert len(list(masks)) <= 2
