"""A real Prometheus scrapes the real service while a stream runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from service.client import Client
from tests.prometheus_rig import needs_prometheus, query, running_prometheus, wait_for

pytestmark = [*needs_prometheus, pytest.mark.slow]


@pytest.fixture
def prometheus(server: Any, tmp_path: Path) -> Iterator[str]:
    """The address of a running Prometheus that scrapes every second."""
    faster = {"scrape_interval: 5s": "scrape_interval: 1s", "scrape_timeout: 4s": "scrape_timeout: 1s"}
    with running_prometheus(server.url, tmp_path, **faster) as address:
        yield address


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
