"""Grey slices and a bundle of four classes on a real server: every form of the mask, and the same offline."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image as PillowImage

from service.__main__ import main
from service.client import Client
from service.contract.geometry import crop_mask, fit_image, plan_fit, restore_mask
from service.contract.masks import MASK_FORMATS, decode_mask, from_png
from service.errors import InvalidPictureError
from tests.conftest import Server
from tests.heart_bundle import CLASSES, MIDDLES, SIZE, draw_heart, expected_classes

NAMES = {info.id: info.name for info in CLASSES}


def to_file(grey: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, grey, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def post(server: Server, data: bytes, **query: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/segment", params=query, content=data, timeout=60)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("form", MASK_FORMATS)
def test_every_pixel_of_a_grey_picture_has_its_class(heart_server: Server, form: Any, suffix: str) -> None:
    data = to_file(draw_heart(3), suffix)
    for size, scale in (("model", 1), ("source", 3)):
        answer = post(heart_server, data, mask=form, size=size)
        assert answer.status_code == 200, answer.text
        np.testing.assert_array_equal(decode_mask(answer.content, form), expected_classes(draw_heart(scale)))


def test_a_palette_shows_the_card_s_colours_and_keeps_the_ids(heart_server: Server) -> None:
    answer = post(heart_server, to_file(draw_heart()), mask="palette")
    assert answer.headers["content-type"] == "image/png"
    picture = PillowImage.open(io.BytesIO(answer.content))
    ids_hw = np.array(picture)
    assert picture.mode == "P" and np.array_equal(ids_hw, expected_classes(draw_heart()))
    colours = np.array(
        [info["colour"] for info in httpx.get(f"{heart_server.url}/v1/model").json()["classes"]]
    )
    np.testing.assert_array_equal(np.array(picture.convert("RGB")), colours[ids_hw])
    plain = PillowImage.open(io.BytesIO(post(heart_server, to_file(draw_heart())).content))
    assert plain.mode == "L" and np.array_equal(np.array(plain), ids_hw), "the form png stays as it was"


@pytest.mark.parametrize(("form", "shapes"), [("rle", "segments"), ("polygons", "polygons")])
def test_shapes_are_named(heart_server: Server, form: str, shapes: str) -> None:
    found = post(heart_server, to_file(draw_heart()), mask=form).json()[shapes]
    assert {shape["class_id"]: shape["name"] for shape in found} == {1: NAMES[1], 2: NAMES[2], 3: NAMES[3]}
    if form == "polygons":
        assert [shape["name"] for shape in found if shape["hole"]] == ["myocardium"]
        assert sum(shape["class_id"] == 3 for shape in found) == 2


def test_the_overlay_tints_each_class_in_its_colour(heart_server: Server) -> None:
    for size, scale in (("model", 1), ("source", 3)):
        answer = post(heart_server, to_file(draw_heart(3)), mask="overlay", size=size)
        shown_bgr = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        places = [(4, 4), (64, 24), (32, 80), (64, 80)]
        for info, level, (row, column) in zip(CLASSES, MIDDLES, places, strict=True):
            tinted = 0.6 * level + 0.4 * np.array(info.colour) if info.id else np.full(3, level)
            shown = shown_bgr[row * scale, column * scale, ::-1]
            assert np.abs(shown - tinted).max() < 12, (info.name, shown, tinted)


def test_16_bit_grey_is_refused_with_what_to_do(heart_server: Server) -> None:
    answer = post(heart_server, to_file(np.full((64, 64), 1064, np.uint16)))
    problem = answer.json()
    assert (answer.status_code, problem["slug"]) == (InvalidPictureError.status, "invalid-picture")
    assert "64 x 64 with 16-bit grey samples" in problem["found"]
    assert "Scale the values to 0 to 255" in problem["remedy"] and "intensities" in problem["remedy"]
    assert httpx.get(f"{heart_server.url}/v1/model").json()["intensities"].startswith("levels of a slice")


@pytest.mark.parametrize("form", MASK_FORMATS)
def test_the_offline_command_writes_the_service_s_bytes(
    heart_server: Server, heart_bundle: Path, tmp_path: Path, form: str
) -> None:
    grey_hw = cv2.resize(draw_heart(3), (301, 277), interpolation=cv2.INTER_CUBIC)  # is not the model's shape
    for name, suffix in (("slice", ".png"), ("photo", ".jpg")):
        (tmp_path / f"{name}{suffix}").write_bytes(to_file(grey_hw, suffix))
    options = ["--bundle", str(heart_bundle), "--backend", "onnxruntime-cpu", "--mask", form, "--no-overlay"]
    assert main(["segment", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 0
    for picture in (tmp_path / "slice.png", tmp_path / "photo.jpg"):
        (written,) = (tmp_path / "out" / "masks").glob(f"{picture.stem}.*")
        assert (
            written.read_bytes() == post(heart_server, picture.read_bytes(), mask=form, size="source").content
        )


@pytest.mark.parametrize("form", MASK_FORMATS)
def test_the_client_and_its_streams_have_every_class(heart_server: Server, form: Any) -> None:
    image_hwc = np.repeat(draw_heart(2)[:, :, None], 3, axis=2)
    with Client(heart_server.url) as client:
        whole = client.segment(image_hwc, mask=form, size="source")
        np.testing.assert_array_equal(whole.mask_hw, expected_classes(draw_heart(2)))
        with client.stream(codec="png", mode="every", mask=form) as stream:
            assert [info["name"] for info in stream.ready["classes"]] == list(NAMES.values())
            for turn in range(4):
                stream.push(np.ascontiguousarray(np.rot90(image_hwc, turn)))
            messages = list(stream.finish())
        assert messages[0].data == client.segment(image_hwc, mask=form, size="model").data
    assert len(messages) == 4
    for turn, message in enumerate(messages):
        assert (message.mask, message.width, message.height) == (form, 256, 256)
        np.testing.assert_array_equal(message.mask_hw, expected_classes(np.rot90(draw_heart(), turn)))


def window_acdc(volume: Any) -> np.ndarray:
    slices: np.ndarray = volume["image"]
    return slices


def window_ct(volume: Any) -> np.ndarray:
    """Hounsfield units from -160 to 240 as 0 to 255."""
    hounsfield = volume["image"].astype(np.float64) - 1024
    slices: np.ndarray = np.rint(np.clip((hounsfield + 160) / 400, 0, 1) * 255).astype(np.uint8)
    return slices


@pytest.mark.parametrize(
    ("source", "window"), [("acdc", window_acdc), ("openkbp_ct", window_ct)], ids=["MRI", "CT"]
)
def test_real_slices_give_the_offline_mask(
    heart_server: Server,
    heart_bundle: Path,
    data_folder: Path,
    tmp_path: Path,
    source: str,
    window: Callable[[Any], np.ndarray],
) -> None:
    volumes = sorted((data_folder / source).glob("*.npz"))[:2]
    if not volumes:
        pytest.skip(f"{source} is not here")
    for path in volumes:
        slices = window(np.load(path))
        cv2.imwrite(str(tmp_path / f"{path.stem}.png"), slices[len(slices) // 2])
    options = ["--bundle", str(heart_bundle), "--backend", "onnxruntime-cpu", "--no-overlay"]
    assert main(["segment", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 0
    for path in volumes:
        data = (tmp_path / f"{path.stem}.png").read_bytes()
        grey_hw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        fit = plan_fit(*grey_hw.shape, SIZE)
        canvas_hw = expected_classes(fit_image(np.repeat(grey_hw[:, :, None], 3, axis=2), fit)[:, :, 0])
        offline_hw = from_png((tmp_path / "out" / "masks" / f"{path.stem}.png").read_bytes())
        assert len(np.unique(offline_hw)) == len(CLASSES)
        np.testing.assert_array_equal(offline_hw, restore_mask(canvas_hw, fit))
        for form in MASK_FORMATS:
            at_source, at_model = (
                post(heart_server, data, mask=form, size=size) for size in ("source", "model")
            )
            np.testing.assert_array_equal(decode_mask(at_source.content, form), offline_hw)  # type: ignore[arg-type]
            np.testing.assert_array_equal(decode_mask(at_model.content, form), crop_mask(canvas_hw, fit))  # type: ignore[arg-type]
