"""Fixtures that several end-to-end tests share: pulled streams, a server of several classes, a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from websockets.sync.client import connect

from tests.bitstreams import encode_codes
from tests.conftest import Server, start_server
from tests.pulled_rig import (
    COUNT,
    WAIT_S,
    Viewer,
)
from tests.sources import (
    RtspServer,
    write_codes,
    write_video,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

CHROMIUM = Path("/usr/bin/chromium")
BROWSER_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-quic"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
PAGE_WAIT_MS = 30_000


@pytest.fixture(scope="session")
def heart_server(heart_bundle: Path) -> Iterator[Server]:
    """A real `surgseg serve` of the bundle of four classes for grey pictures."""
    running = start_server("--port", "0", "--bundle", str(heart_bundle), SURGSEG_BACKEND="onnxruntime-cpu")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    running = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGUMENTS)
    yield running
    running.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which any uncaught script error fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(PAGE_WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Video files: `codes.mp4` has B-frames, `codes.ts` has none, `noise.mp4` has masks that do not compress."""
    made = tmp_path_factory.mktemp("videos")
    write_codes(made / "codes.mp4", range(COUNT), b_frames=2)
    write_codes(made / "codes.ts", range(COUNT))
    source = np.random.default_rng(3)
    noise = [source.integers(0, 256, (288, 512, 3), np.uint8) for _ in range(10)]
    write_video(
        made / "noise.mp4",
        (image_hwc.mean(2, keepdims=True).astype(np.uint8).repeat(3, 2) for image_hwc in noise),
    )
    (made / "outside.mp4").symlink_to("/etc/hostname")
    (made / "text.mp4").write_text("this is no video")
    return made


@pytest.fixture(scope="session")
def puller(small_bundle: Path, videos: Path) -> Iterator[Server]:
    running = start_server(
        *("--port", "0", "--bundle", str(small_bundle)),
        SURGSEG_FILES=str(videos),
        SURGSEG_PULL_HOSTS="127.0.0.1",
        SURGSEG_STALL_S="1.5",
        SURGSEG_RECONNECT_S="0.5",
        SURGSEG_VIEWER_TIMEOUT_S="1.5",
    )
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RtspServer]:
    server = RtspServer(encode_codes(range(COUNT)), tmp_path_factory.mktemp("rtsp"))
    yield server
    server.stop()


@pytest.fixture
def watch(puller: Server) -> Iterator[Callable[..., Viewer]]:
    with ExitStack() as opened:

        def watch_it(stream_id: str, mask: str = "png", **options: Any) -> Viewer:
            url = f"{puller.ws_url}/v1/streams/{stream_id}/masks?mask={mask}"
            viewer = Viewer(
                opened.enter_context(connect(url, open_timeout=WAIT_S, close_timeout=0.5, **options)), mask
            )
            ready = json.loads(viewer.socket.recv(WAIT_S))
            assert (ready["type"], ready["stream"], ready["mask"]) == ("ready", stream_id, mask)
            return viewer

        yield watch_it
