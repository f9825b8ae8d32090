"""The model is changed under live streams: whose masks come when, and what a bundle that is no good changes."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.contract.bundle import Bundle
from service.contract.masks import decode_mask
from service.wire import encode_picture, unpack_mask
from tests.bitstreams import encode_units
from tests.conftest import Server, start_server
from tests.end_to_end.test_asyncapi import check_mask, check_text
from tests.labelling_bundles import write_labelling_bundle

WAIT_S = 60.0
PICTURE_HWC = np.full((64, 96, 3), 50, np.uint8)
JPEG = encode_picture(PICTURE_HWC, "jpeg")
H264 = encode_units([PICTURE_HWC] * 8, "h264")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def bundles(folder: Path) -> dict[str, Bundle]:
    """`one` and `three` are good and named after their label; the rest must not be served in their place."""
    made = {name: write_labelling_bundle(folder / name, label) for name, label in (("one", 1), ("three", 3))}
    write_labelling_bundle(folder / "wide", 2, width=128)
    write_labelling_bundle(folder / "wrong", 2, golden=1)
    write_labelling_bundle(folder / "slow", 2, is_slow=True)
    write_labelling_bundle(folder / "damaged", 2)
    damaged = folder / "damaged" / "model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    shutil.copytree(folder / "one", folder.parent / "outside", dirs_exist_ok=True)
    return made


@pytest.fixture(scope="module")
def swapper(folder: Path, bundles: dict[str, Bundle]) -> Iterator[Server]:
    options = ("--port", "0", "--bundle", str(folder / "one"), "--backend", "onnxruntime-cpu")
    running = start_server(*options, SURGSEG_BUNDLES=str(folder))
    yield running
    assert running.stop() == 0


def order(server: Server, bundle: str = "three") -> httpx.Response:
    return httpx.post(f"{server.url}/v1/model", json={"bundle": bundle}, timeout=2 * WAIT_S)


def roll_back(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/model/rollback", timeout=2 * WAIT_S)


class LiveClient:
    """Pushes 25 frames a second and keeps what comes, in order: (fingerprint, label) of masks, events as they are."""

    def __init__(self, server: Server, query: str, units: list[bytes], pause_s: float = 0.0) -> None:
        self._opened = ExitStack()
        url = f"{server.ws_url}/v1/stream?{query}"
        self.socket = self._opened.enter_context(connect(url, open_timeout=WAIT_S, close_timeout=1))
        self.heard: list[Any] = [check_text(self.socket.recv(WAIT_S))]
        self.answered = 0
        self.is_over = threading.Event()
        self._units, self._pause_s = units, pause_s
        self._threads = [threading.Thread(target=work) for work in (self._push, self._read)]
        for thread in self._threads:
            thread.start()

    def _push(self) -> None:
        number = 0
        with suppress(ConnectionClosed):
            while not self.is_over.wait(0.04):
                self.socket.send(bytes(8) + self._units[number % len(self._units)])
                number += 1

    def _read(self) -> None:
        try:
            while True:
                self._take(self.socket.recv())
                time.sleep(self._pause_s)
        except ConnectionClosed:
            self.heard.append("closed")

    def _take(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.heard.append(check_text(message))
            return
        header = check_mask(message)
        mask_hw = decode_mask(unpack_mask(message)[1], "png")
        assert mask_hw.min() == mask_hw.max()
        self.heard.append((header["model"], int(mask_hw[0, 0])))
        self.answered += 1

    def finish(self, told: int) -> None:
        """Stop when that many events have come, which a slow reader finds behind the masks before them."""
        gives_up_at = time.monotonic() + WAIT_S
        self.is_over.set()
        while sum(isinstance(each, dict) for each in self.heard) < told and time.monotonic() < gives_up_at:
            time.sleep(0.02)
        self._threads[0].join(WAIT_S)
        self._opened.close()
        self._threads[1].join(WAIT_S)


def identify(bundle: Bundle) -> dict[str, str]:
    return {"name": bundle.card.name, "version": bundle.card.version, "fingerprint": bundle.fingerprint}


def check_story(heard: list[Any], models: list[Bundle]) -> None:
    """`ready` names the first model, a notice each further one, and every mask is that of the model named last."""
    named = heard[0]
    left = list(models)
    for item in heard:
        if isinstance(item, dict):
            assert item["type"] == ("ready" if item is heard[0] else "notice")
            named = left.pop(0)
            assert item["model"] == identify(named)
            assert [each["id"] for each in item["classes"]] == [info.id for info in named.card.classes]
        elif item != "closed":
            label = int(named.card.name.removeprefix("label-"))
            assert item == (named.short_fingerprint, label)
    assert left == []
    assert heard.count("closed") == 1


def test_no_stream_closes_and_no_mask_is_of_the_model_before_the_notice(
    swapper: Server, bundles: dict[str, Bundle]
) -> None:
    one, three = bundles["one"], bundles["three"]
    clients = [
        LiveClient(swapper, "mode=latest", [JPEG]),
        LiveClient(swapper, "mode=latest&codec=h264", H264),
        LiveClient(swapper, "mode=every", [JPEG]),
        LiveClient(swapper, "mode=every", [JPEG], pause_s=0.06),  # masks of both models lie in its mailbox
    ]
    time.sleep(0.5)
    for change, bundle in ((order, three), (roll_back, one)):
        answer = change(swapper)
        assert answer.status_code == 200, answer.text
        assert answer.json()["running"]["fingerprint"] == bundle.fingerprint
        assert httpx.get(f"{swapper.url}/readyz").status_code == 200
        posted = httpx.post(f"{swapper.url}/v1/segment", content=JPEG)
        assert decode_mask(posted.content, "png")[0, 0] == int(bundle.card.name[-1])
        time.sleep(0.5)
    accounts = {each["id"]: each for each in httpx.get(f"{swapper.url}/v1/streams").json()}
    for client in clients:
        client.finish(told=3)
        check_story(client.heard, [one, three, one])
        assert client.answered > 20
        account = accounts[client.heard[0]["stream"]]
        assert account["state"] == "running"
        if account["mode"] == "every":
            assert not any(account["dropped"].values())


@pytest.mark.parametrize(
    ("bundle", "status", "reason"),
    [
        ("damaged", 422, "it was changed after export"),
        ("wide", 422, "takes pictures of 128 x 64 (letterbox). Expected 96 x 64"),
        ("wrong", 422, "gives 0.00% of the labels of the golden picture"),
        ("none", 404, "There is no bundle 'none'"),
        ("../outside", 403, "outside the folder"),
        ("", 400, "at least 1 character"),
    ],
)
def test_a_bundle_that_is_no_good_changes_nothing(
    swapper: Server, bundles: dict[str, Bundle], bundle: str, status: int, reason: str
) -> None:
    before = httpx.get(f"{swapper.url}/v1/model").json()
    client = LiveClient(swapper, "mode=latest", [JPEG])
    answer = order(swapper, bundle)
    client.finish(told=1)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert reason in answer.json()["detail"]
    assert httpx.get(f"{swapper.url}/v1/model").json() == before
    check_story(client.heard, [bundles["one"]])


def test_a_service_without_a_folder_of_bundles_changes_nothing(server: Server) -> None:
    answer = order(server, "one")
    assert (answer.status_code, answer.json()["slug"]) == (403, "forbidden")
    answer = httpx.post(f"{server.url}/v1/model/rollback")
    assert (answer.status_code, answer.json()["slug"]) == (409, "conflict")


def test_changes_leave_nothing_behind(swapper: Server) -> None:
    process = psutil.Process(swapper.process.pid)

    def measure() -> tuple[int, int, float]:
        for bundle in ("three", "one"):
            assert order(swapper, bundle).status_code == 200
        gives_up_at = time.monotonic() + WAIT_S
        while any(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp")):
            assert time.monotonic() < gives_up_at, "the connection of the last order is still open"
            time.sleep(0.02)
        return process.num_threads(), process.num_fds(), process.memory_info().rss / 2**20

    threads, files, memory_mib = measure()
    for _ in range(2):
        threads_later, files_later, memory_later_mib = measure()
    assert (threads_later, files_later) == (threads, files)
    assert memory_later_mib < memory_mib + 8
    metrics = httpx.get(f"{swapper.url}/metrics").text
    infos = [line for line in metrics.splitlines() if line.startswith("surgseg_model_info{")]
    assert len(infos) == 1 and 'name="label-1"' in infos[0]


def test_a_bundle_that_is_slow_to_open_is_given_up(
    folder: Path, launch_server: Callable[..., Server]
) -> None:
    options = ("--bundle", str(folder / "one"), "--backend", "onnxruntime-cpu")
    running = launch_server(*options, SURGSEG_BUNDLES=str(folder), SURGSEG_SWAP_LIMIT_S="3")
    process = psutil.Process(running.process.pid)
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(order, running, "slow")
        wait_for_step(running, "rehearsing")
        second = order(running, "three")
        assert (second.status_code, second.json()["slug"]) == (409, "conflict")
        answer = changing.result(WAIT_S)
        assert (answer.status_code, answer.json()["slug"]) == (422, "swap-refused")
        assert "not open and proven after 3 s" in answer.json()["detail"]
        assert "label-1 1" in answer.json()["remedy"]
        assert len(rehearsals(process)) == 0
        ending = pool.submit(order, running, "slow")
        wait_for_step(running, "rehearsing")
        children = rehearsals(process)
        assert len(children) == 1
        assert running.stop() == 0
        assert ending.result(WAIT_S).status_code == 503
        assert not children[0].is_running()


def wait_for_step(server: Server, step: str) -> None:
    ends_at = time.monotonic() + WAIT_S
    while httpx.get(f"{server.url}/v1/model").json()["swapping"] != step:
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def rehearsals(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "rehearsal" in " ".join(child.cmdline())]
