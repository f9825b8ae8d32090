"""A real Prometheus scrapes the real service while a stream runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from service.client import Client

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "deploy" / "prometheus" / "prometheus.yml"

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


@pytest.fixture
def config(server: Any, tmp_path: Path) -> Path:
    """The configuration that we ship, aimed at the test's server and scraping every second."""
    text = CONFIG.read_text()
    changes = {
        "127.0.0.1:8000": server.url.removeprefix("http://"),
        "scrape_interval: 5s": "scrape_interval: 1s",
        "scrape_timeout: 4s": "scrape_timeout: 1s",
    }
    for old, new in changes.items():
        assert text.count(old) == 1, f"{CONFIG} no longer has {old!r} once"
        text = text.replace(old, new)
    path = tmp_path / "prometheus.yml"
    path.write_text(text)
    return path


@pytest.fixture
def prometheus(config: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a running Prometheus."""
    log = tmp_path / "prometheus.log"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--web.listen-address=127.0.0.1:0"], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield wait_for(lambda: find_address(log), "Prometheus did not start", 30)
    finally:
        process.terminate()
        process.wait(20)


def find_address(log: Path) -> str | None:
    found = re.search(r'"Listening on" address=(\S+)', log.read_text())
    return f"http://{found.group(1)}" if found else None


def wait_for(ask: Callable[[], Any], failure: str, timeout_s: float) -> Any:
    deadline_at = time.monotonic() + timeout_s
    while time.monotonic() < deadline_at:
        if answer := ask():
            return answer
        time.sleep(0.2)
    raise AssertionError(failure)


def query(prometheus: str, expression: str) -> dict[str, float]:
    """The values of an instant query, by their labels (without job and instance)."""
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    values = {}
    for series in answer["data"]["result"]:
        labels = {k: v for k, v in series["metric"].items() if k not in ("job", "instance", "__name__")}
        values[",".join(f"{name}={labels[name]}" for name in sorted(labels))] = float(series["value"][1])
    return values


class Pusher(threading.Thread):
    """Pushes pictures at 25 a second, every tenth of them broken, until it is stopped."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._stopped = threading.Event()
        self.answered = 0

    def run(self) -> None:
        noise_hwc = np.random.default_rng(1).integers(0, 256, (180, 320, 3), dtype=np.uint8)
        picture = cv2.imencode(".jpg", noise_hwc)[1].tobytes()
        with Client(self._url) as client, client.stream(on_event=lambda event: None) as stream:
            number = 0
            while not self._stopped.wait(0.04):
                number += 1
                stream.push(b"this is not a picture" if number % 10 == 0 else picture)
                self.answered += sum(1 for _ in stream.arrived())

    def stop(self) -> None:
        self._stopped.set()
        self.join(10)


def test_shipped_configuration_is_valid() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        ["promtool", "check", "config", CONFIG], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_scrape_shows_rates_stages_drops_and_readiness_while_a_stream_runs(
    server: Any, prometheus: str
) -> None:
    pusher = Pusher(server.url)
    pusher.start()
    try:
        quantile = "histogram_quantile(0.5, sum by (le, stage) (rate(surgseg_stage_seconds_bucket[10s]))) > 0"
        stages = wait_for(
            lambda: found if len(found := query(prometheus, quantile)) >= 5 else None,
            "no stage latencies were scraped",
            30,
        )
        fps = wait_for(lambda: query(prometheus, "surgseg_stream_fps > 5"), "no frame rate was scraped", 30)
        drops = wait_for(
            lambda: query(prometheus, 'sum by (reason) (surgseg_frames_dropped_total{stream!="images"}) > 0'),
            "no drop was scraped",
            30,
        )
        assert query(prometheus, "surgseg_ready") == {"": 1.0}
        assert query(prometheus, 'up{job="surgseg"}') == {"": 1.0}
        assert query(prometheus, "surgseg_streams")[""] >= 1
    finally:
        pusher.stop()
    assert pusher.answered > 20
    assert {"stage=decode", "stage=prepare", "stage=wait", "stage=infer", "stage=encode"} <= set(stages)
    assert all(seconds < 1 for seconds in stages.values())
    assert max(fps.values()) <= 30
    assert drops["reason=undecodable"] >= 1
