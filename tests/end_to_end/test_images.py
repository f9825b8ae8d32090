"""`POST /v1/segment` on a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from service.backends import BACKENDS, load_backend
from service.contract.bundle import open_bundle
from service.contract.masks import from_png, from_polygons, from_rle

STAGES = ["decode", "prepare", "wait", "infer", "encode", "total"]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A 720p RGB picture, dark with two bright blocks on the model's own pixel grid."""
    image_hwc = np.full((720, 1280, 3), 30, np.uint8)
    image_hwc[100:300, 200:500] = 220
    image_hwc[400:600, 800:1200] = 200
    return image_hwc


@pytest.fixture(scope="module")
def jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def expect_mask(picture: np.ndarray) -> np.ndarray:
    return (picture.mean(axis=2) > 127).astype(np.uint8)


def post(server: Any, data: bytes, **query: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/segment", params=query, content=data, timeout=60)


def test_a_720p_jpeg_gives_a_png_mask_with_every_stage_timed(
    server: Any, jpeg: bytes, picture: np.ndarray
) -> None:
    answer = post(server, jpeg)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    mask_hw = from_png(answer.content)
    assert mask_hw.shape == (288, 512)
    expected = cv2.resize(expect_mask(picture), (512, 288), interpolation=cv2.INTER_NEAREST)
    assert (mask_hw == expected).mean() > 0.995
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    assert list(timing) == STAGES
    parts_ms = sum(float(timing[stage]) for stage in STAGES[:-1])
    assert parts_ms == pytest.approx(float(timing["total"]), abs=0.01)


def test_at_source_size_the_mask_lies_on_the_pictures_own_pixels(
    server: Any, jpeg: bytes, picture: np.ndarray
) -> None:
    mask_hw = from_png(post(server, jpeg, size="source").content)
    assert mask_hw.shape == (720, 1280)
    assert (mask_hw == expect_mask(picture)).mean() > 0.995


def test_the_mask_of_a_letterboxed_picture_covers_only_the_picture(server: Any) -> None:
    square = np.full((600, 600, 3), 255, np.uint8)
    data = cv2.imencode(".png", square)[1].tobytes()
    mask_hw = from_png(post(server, data).content)
    assert mask_hw.shape == (288, 288)
    assert mask_hw.all()
    assert from_png(post(server, data, size="source").content).shape == (600, 600)


def test_rle_and_polygons_say_the_same_as_png(server: Any, jpeg: bytes) -> None:
    for size in ("model", "source"):
        mask_hw = from_png(post(server, jpeg, size=size).content)
        rle = post(server, jpeg, mask="rle", size=size)
        polygons = post(server, jpeg, mask="polygons", size=size)
        assert rle.headers["content-type"] == polygons.headers["content-type"] == "application/json"
        np.testing.assert_array_equal(from_rle(rle.json()), mask_hw)
        np.testing.assert_array_equal(from_polygons(polygons.json()), mask_hw)


def test_an_overlay_shows_the_picture_with_the_mask_on_it(
    server: Any, jpeg: bytes, picture: np.ndarray
) -> None:
    for size, shape in (("model", (288, 512)), ("source", (720, 1280))):
        answer = post(server, jpeg, mask="overlay", size=size)
        assert answer.headers["content-type"] == "image/jpeg"
        overlay_bgr = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        assert overlay_bgr.shape[:2] == shape
        row, column = shape[0] * 200 // 720, shape[1] * 350 // 1280
        blue, _, red = overlay_bgr[row, column].astype(int)
        assert blue > red + 40, "the instrument is tinted in its class colour (0, 200, 255)"
        assert abs(overlay_bgr[5, 5].astype(int) - 30).max() < 12, "the rest is the picture itself"


def test_a_form_with_a_file_is_the_same_as_a_raw_body(server: Any, jpeg: bytes) -> None:
    form = httpx.post(f"{server.url}/v1/segment", files={"file": ("a.jpg", jpeg, "image/jpeg")}, timeout=60)
    assert form.status_code == 200
    assert form.content == post(server, jpeg).content


def test_many_requests_at_once_each_get_their_own_mask(server: Any) -> None:
    def ask(number: int) -> bool:
        image_hwc = np.zeros((288, 512, 3), np.uint8)
        image_hwc[:, : 16 * (number + 1)] = 255
        mask_hw = from_png(post(server, cv2.imencode(".png", image_hwc)[1].tobytes()).content)
        return bool((mask_hw == (image_hwc[:, :, 0] > 127)).all())

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(24)))


def test_the_card_the_health_and_the_documentation_are_served(server: Any, small_bundle: Path) -> None:
    answer = httpx.get(f"{server.url}/v1/model").json()
    running = answer.pop("running")
    assert (answer.pop("previous"), answer.pop("swapping")) == (None, None)
    assert answer == json.loads((small_bundle / "card.json").read_text())
    bundle = open_bundle(small_bundle)
    assert running["backend"] in BACKENDS
    assert running["sha256"] == bundle.hash_of(running["precision"])
    assert running["fingerprint"] == bundle.fingerprint
    assert running["runtime_version"] == load_backend(running["backend"]).version
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    page = httpx.get(f"{server.url}/docs").text
    for named in (
        "POST /v1/segment",
        "GET /v1/model",
        "png, palette, rle, polygons, overlay",
        "multipart/form-data",
    ):
        assert named in page
    assert "://" not in page, "it must load nothing from another server"
    described = httpx.get(f"{server.url}/openapi.json").json()["paths"]["/v1/segment"]["post"]
    assert {"image/jpeg", "image/png", "multipart/form-data"} <= set(described["requestBody"]["content"])


def test_real_frames_are_answered(server: Any, data_folder: Path) -> None:
    paths = (
        sorted((data_folder / "endovis2015_rigid").rglob("img_??_raw.png"))[:2]
        or sorted(
            path for path in (data_folder / "endovis2015_rigid").rglob("*.png") if "class" not in path.name
        )[:2]
    )
    assert paths
    for path in paths:
        answer = post(server, path.read_bytes(), size="source")
        assert answer.status_code == 200
        assert from_png(answer.content).shape == cv2.imread(str(path)).shape[:2]


def test_too_many_requests_at_once_are_refused_and_the_next_one_works(
    launch_server: Callable[..., Any], jpeg: bytes
) -> None:
    server = launch_server(SURGSEG_MAX_REQUESTS="1")

    def unfinished() -> Any:
        yield jpeg[:1000]
        refused = post(server, jpeg)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["slug"] == "unavailable"
        yield jpeg[1000:]

    first = httpx.post(f"{server.url}/v1/segment", content=unfinished(), timeout=60)
    assert first.status_code == 200
    assert post(server, jpeg).status_code == 200
