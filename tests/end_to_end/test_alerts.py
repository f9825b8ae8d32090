"""The alerts and dashboards that we ship, in a real Prometheus over a real service to which the worst happens."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from service.errors import OverloadedError
from tests.bitstreams import encode_codes
from tests.conftest import Server, start_server
from tests.prometheus_rig import (
    list_firing,
    list_shipped_queries,
    name_metrics,
    needs_prometheus,
    query,
    running_prometheus,
    wait_for,
)
from tests.pulled_rig import await_state, find_decoders, pulled
from tests.sources import find_free_port, sending_datagrams

pytestmark = [*needs_prometheus, pytest.mark.slow]
WITHIN_S = 60.0
WANTED = {"SurgsegStreamStalled", "SurgsegDecoderRestarting", "SurgsegOverloaded"}


@dataclass
class Ward:
    """A service with a camera's stream and a film, the Prometheus that watches it, and what becomes of the camera."""

    service: Server
    prometheus: str
    camera: Any


@pytest.fixture(scope="module")
def ward(small_bundle: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    folder = tmp_path_factory.mktemp("prometheus")
    service = start_server(
        *("--port", "0", "--bundle", str(small_bundle)),
        SURGSEG_FILES=str(videos),
        SURGSEG_PULL_HOSTS="127.0.0.1",
        SURGSEG_ADMISSION="1",
    )
    with ExitStack() as opened:
        opened.callback(service.stop)
        prometheus = opened.enter_context(running_prometheus(service.url, folder))
        port = find_free_port()
        camera = opened.enter_context(sending_datagrams("pyav", videos / "codes.ts", port))
        for url, loop in ((f"udp://127.0.0.1:{port}", False), ("file:codes.mp4", True)):
            stream_id = opened.enter_context(pulled(service, url, loop=loop))
            await_state(service, stream_id, "running")
        httpx.post(f"{service.url}/v1/segment", content=b"no picture")
        yield Ward(service, prometheus, camera)


def test_every_shipped_query_runs_and_finds_what_it_asks_for(ward: Ward) -> None:
    """Alerts find nothing while all is well; each metric that they and the dashboards name is there all the same."""
    told = {
        line.split("{")[0].split(" ")[0]
        for line in httpx.get(f"{ward.service.url}/metrics").text.splitlines()
    }
    queries = list_shipped_queries()
    assert len(queries) > 40
    for where, text in queries.items():
        names = name_metrics(text)
        foreign = {name for name in names if name.startswith("DCGM_FI_DEV_")} | {"up", "ALERTS"}
        assert names - foreign <= told, where
        query(ward.prometheus, text)
    panels = {where: text for where, text in queries.items() if " " in where and "DCGM" not in text}
    shows_trouble_only = ("What fires", "Decoders started again")

    def find_empty() -> list[str]:
        return [where for where, text in panels.items() if not query(ward.prometheus, text)]

    wait_for(
        lambda: all(where.startswith(shows_trouble_only) for where in find_empty()),
        "panels stay empty",
        30,
    )


def test_a_stalled_stream_a_killed_decoder_and_an_overload_raise_their_alerts_within_a_minute(
    ward: Ward,
) -> None:
    assert not WANTED & set(list_firing(ward.prometheus))
    wait_for(
        lambda: len(query(ward.prometheus, 'surgseg_decoder_restarts_total{cause="ended"}')) == 2,
        "the streams were not scraped",
        15,
    )
    ward.camera.send_signal(signal.SIGSTOP)
    os.kill(find_film_decoder(ward.service), signal.SIGKILL)
    refused = threading.Thread(target=open_until_refused, args=(ward.service.url,))
    refused.start()
    raised: dict[str, dict[str, str]] = {}

    def are_all_raised() -> bool:
        for name, labels in list_firing(ward.prometheus).items():
            raised.setdefault(name, labels)
        return set(raised) >= WANTED

    with suppress(AssertionError):
        wait_for(are_all_raised, "", WITHIN_S)
    refused.join()
    assert set(raised) >= WANTED
    assert raised["SurgsegStreamStalled"]["stream"] == "1"
    assert raised["SurgsegDecoderRestarting"].items() >= {"stream": "2", "cause": "ended"}.items()
    assert raised["SurgsegOverloaded"]["reason"] == "overloaded"
    assert not {"SurgsegDown", "SurgsegMissing", "SurgsegNotReady", "SurgsegModelMismatch"} & set(raised)


def find_film_decoder(service: Server) -> int:
    """The decoder that has the film open: the other one has a socket."""
    for process in find_decoders(service):
        if any(file.path.endswith("codes.mp4") for file in process.open_files()):
            return process.pid
    raise AssertionError("no decoder has the film open")


def open_until_refused(url: str) -> None:
    """Ask for more than any machine has until the service refuses."""
    with Client(url) as client, ExitStack() as opened:
        for _ in range(8):
            try:
                stream = client.stream(codec="h264", fps=1000, width=3840, height=2160)
            except OverloadedError:
                return
            opened.callback(stream.close)
            stream.push(encode_codes([1])[0])
