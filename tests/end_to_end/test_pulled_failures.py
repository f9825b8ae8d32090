"""Sources that fail, decoders that are killed, viewers that do not read: what a pulled stream makes of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.wire import MaskHeader
from tests.conftest import Server
from tests.pulled_rig import (
    COUNT,
    WAIT_S,
    Viewer,
    await_state,
    check_identity,
    find_decoders,
    info,
    is_balanced,
    is_connected_to,
    pulled,
    read_headers,
)
from tests.sources import FPS, RtspServer


def await_return(viewer: Viewer) -> None:
    """Read what came before the stream was lost, which may be much, until it is told that it runs again."""
    while viewer.states()[-1:] != ["running"] or "restarting" not in viewer.states():
        viewer.receive()


def test_a_silent_source_stalls_is_opened_again_and_comes_back(
    puller: Server, watch: Callable[..., Viewer], camera: RtspServer
) -> None:
    with pulled(puller, camera.url) as stream_id:
        viewer = watch(stream_id)
        viewer.receive()
        camera.process.send_signal(signal.SIGSTOP)
        restarting = await_state(puller, stream_id, "restarting")
        assert "sent nothing" in restarting["reason"]
        assert is_balanced(restarting)
        camera.process.send_signal(signal.SIGCONT)
        await_state(puller, stream_id, "running")
        await_return(viewer)
        check_identity([viewer.receive() for _ in range(10)])
        told = viewer.states()
        assert told.index("stalled") < told.index("restarting") < len(told) - 1


def test_a_camera_that_is_switched_off_and_on_comes_back(
    puller: Server, watch: Callable[..., Viewer], camera: RtspServer
) -> None:
    """It is off for longer than the failures that end a stream which never worked."""
    with pulled(puller, camera.url) as stream_id:
        viewer = watch(stream_id)
        viewer.receive()
        camera.stop()
        off_until = time.monotonic() + 4.0
        reasons = set()
        while time.monotonic() < off_until:
            reasons.add(info(puller, stream_id)["reason"])
            time.sleep(0.05)
        assert any("refused" in reason for reason in reasons), reasons
        assert info(puller, stream_id)["state"] == "restarting"
        camera.start()
        await_state(puller, stream_id, "running")
        await_return(viewer)
        check_identity([viewer.receive() for _ in range(10)])


def test_a_killed_decoder_costs_less_than_two_seconds(
    puller: Server, watch: Callable[..., Viewer], camera: RtspServer
) -> None:
    with pulled(puller, camera.url) as stream_id, pulled(puller, "file:codes.mp4", loop=True) as other_id:
        viewer, neighbour = watch(stream_id), watch(other_id)
        viewer.receive()
        before = {neighbour.receive()[0].sequence}
        victims = [decoder for decoder in find_decoders(puller) if is_connected_to(decoder, camera.port)]
        assert len(victims) == 1
        os.kill(victims[0].pid, signal.SIGKILL)
        killed_at = time.monotonic()
        while "restarting" not in viewer.states() or viewer.states()[-1] != "running":
            viewer.receive()
        assert time.monotonic() - killed_at < 2.0
        assert "SIGKILL" in next(
            event["reason"] for event in viewer.events if event.get("state") == "restarting"
        )
        check_identity([viewer.receive() for _ in range(5)])
        assert not neighbour.states() or set(neighbour.states()) <= {"starting", "running"}
        assert neighbour.receive()[0].sequence > max(before)


def test_a_file_whose_decoder_is_killed_goes_on_where_it_was(
    puller: Server, watch: Callable[..., Viewer]
) -> None:
    with pulled(puller, "file:codes.mp4", mode="every") as stream_id:
        viewer = watch(stream_id)
        received = [viewer.receive() for _ in range(20)]
        for decoder in find_decoders(puller):
            os.kill(decoder.pid, signal.SIGKILL)
        received += viewer.receive_all()
        assert [code for _, code in received] == list(range(COUNT))
        assert is_balanced(info(puller, stream_id))


def test_a_viewer_that_does_not_read_is_told_what_it_missed_and_cut_and_nobody_else_notices(
    puller: Server, watch: Callable[..., Viewer]
) -> None:
    noise = pulled(puller, "file:noise.mp4", loop=True)
    with noise as stream_id, socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", int(puller.url.rpartition(":")[2])))
        slow = watch(stream_id, "rle", sock=narrow, max_queue=1)
        time.sleep(1.0)
        told: list[MaskHeader] = []
        while not told or not told[-1].skipped:
            read_headers(slow.socket, told, count=1)
        sequences = [header.sequence for header in told]
        assert told[-1].skipped <= sequences[-1] - len(told)
        good = watch(stream_id)
        headers: list[MaskHeader] = []
        reader = threading.Thread(target=read_headers, args=(good.socket, headers), daemon=True)
        reader.start()
        ends_at = time.monotonic() + WAIT_S
        while info(puller, stream_id)["viewers"] == 2:
            assert time.monotonic() < ends_at
            time.sleep(0.1)
        server, port = psutil.Process(puller.process.pid), narrow.getsockname()[1]
        while is_connected_to(server, port):
            assert time.monotonic() < ends_at, "what it was to take is still held for it"
            time.sleep(0.1)
        read_headers(slow.socket, [])
        assert slow.socket.close_code in (1006, 1013)
        assert len(headers) > FPS
        assert headers[-1].skipped <= len(headers) / 10
        assert [line for line in puller.output if "Exception" in line] == []


def test_what_is_no_video_fails_with_ffmpeg_s_reason_and_its_viewers_are_told(
    puller: Server, watch: Callable[..., Viewer]
) -> None:
    with pulled(puller, "file:text.mp4") as stream_id:
        assert "not a video" in await_state(puller, stream_id, "failed")["reason"]
        viewer = watch(stream_id)
        assert viewer.receive_all() == []
        assert viewer.events[-1]["type"] == "error"
        assert viewer.socket.close_code == 1011


def test_closed_streams_leave_no_process_thread_or_file(
    puller: Server, watch: Callable[..., Viewer], camera: RtspServer
) -> None:
    process = psutil.Process(puller.process.pid)
    nurseries = process.children()

    def held() -> tuple[int, int, int, int]:
        open_files = sum(one.num_fds() for one in [process, *nurseries])
        return (
            open_files,
            process.num_threads(),
            len(process.children(recursive=True)),
            len(find_decoders(puller)),
        )

    def open_and_close() -> None:
        with pulled(puller, camera.url) as first, pulled(puller, "file:codes.mp4", loop=True) as second:
            one, two = watch(first), watch(second, "rle")
            one.receive(), two.receive()
            one.socket.close(), two.socket.close()

    open_and_close()
    ends_at = time.monotonic() + WAIT_S
    before = held()
    for _ in range(4):
        open_and_close()
    while (after := held()) > before:
        assert time.monotonic() < ends_at, (before, after)
        time.sleep(0.1)
    assert after[3] == 0


def test_a_service_that_ends_tells_its_viewers_and_leaves_no_process(
    launch_server: Callable[..., Server], videos: Path
) -> None:
    running = launch_server(SURGSEG_FILES=str(videos))
    opened = httpx.post(
        f"{running.url}/v1/streams", json={"url": "file:codes.mp4", "loop": True}, timeout=WAIT_S
    )
    url = f"{running.ws_url}/v1/streams/{opened.json()['id']}/masks"
    with connect(url, open_timeout=WAIT_S, close_timeout=0.5) as viewer:
        while isinstance(viewer.recv(WAIT_S), str):
            pass
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert len(children) >= 2, "the nursery, its decoder, and perhaps the calibration"
        asked_at = time.monotonic()
        running.process.terminate()
        texts = []
        with suppress(ConnectionClosed):
            while True:
                message = viewer.recv(WAIT_S)
                texts += [json.loads(message)["type"]] if isinstance(message, str) else []
        assert (texts, viewer.close_code) == (["closing"], 1001)
    assert running.process.wait(WAIT_S) == 0
    assert time.monotonic() - asked_at < 8.0
    gone, alive = psutil.wait_procs(children, timeout=5.0)
    assert (len(gone), alive) == (len(children), [])
