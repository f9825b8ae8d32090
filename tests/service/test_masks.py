from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PillowImage

from service.contract.masks import (
    MASK_FORMATS,
    encode_mask,
    from_png,
    from_rle,
    to_palette_png,
    to_png,
    to_polygons,
    to_rle,
)
from service.contract.model_card import ClassInfo

CLASSES = tuple(
    ClassInfo(id=number, name=name, colour=colour)
    for number, (name, colour) in enumerate(
        [("background", (0, 0, 0)), ("myocardium", (230, 160, 30)), ("left_ventricle", (200, 40, 60))]
    )
)

masks = arrays(
    np.uint8,
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    elements=st.sampled_from([0, 0, 1, 1, 2, 255]),
)


@given(mask_hw=masks)
def test_png_and_rle_give_the_mask_back(mask_hw: np.ndarray) -> None:
    np.testing.assert_array_equal(from_png(encode_mask(mask_hw, "png")), mask_hw)
    np.testing.assert_array_equal(from_rle(json.loads(encode_mask(mask_hw, "rle"))), mask_hw)


@given(mask_hw=masks)
def test_a_shape_is_listed_for_every_class_but_the_background(mask_hw: np.ndarray) -> None:
    present = sorted(set(np.unique(mask_hw)) - {0})
    assert [segment["class_id"] for segment in to_rle(mask_hw)["segments"]] == present
    assert sorted({polygon["class_id"] for polygon in to_polygons(mask_hw)["polygons"]}) == present


def test_shapes_have_the_names_of_their_classes() -> None:
    mask_hw = np.array([[0, 1, 2, 7]], np.uint8)
    expected = [(1, "myocardium"), (2, "left_ventricle"), (7, None)]
    for shapes in (to_rle(mask_hw, CLASSES)["segments"], to_polygons(mask_hw, CLASSES)["polygons"]):
        assert [(shape["class_id"], shape.get("name")) for shape in shapes] == expected
    assert all("name" not in shape for shape in to_rle(mask_hw)["segments"])


@given(mask_hw=masks)
def test_a_palette_holds_the_ids_for_programs_and_the_colours_for_people(mask_hw: np.ndarray) -> None:
    data = to_palette_png(mask_hw, CLASSES)
    picture = PillowImage.open(io.BytesIO(data))
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.array(picture), mask_hw)
    np.testing.assert_array_equal(from_png(data), mask_hw)
    colours = np.full((256, 3), 255, np.uint8)
    colours[:3] = [info.colour for info in CLASSES]
    shown_bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(shown_bgr[:, :, ::-1], colours[mask_hw])


def test_a_palette_costs_its_colours_only() -> None:
    mask_hw = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) % 3, np.ones((90, 90), np.uint8))
    plain, coloured = to_png(mask_hw), to_palette_png(mask_hw, CLASSES)
    assert len(coloured) == len(plain) + 12 + 3 * len(CLASSES)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.8, 0.99])
def test_a_palette_that_is_cut_short_is_refused(share: float) -> None:
    noise_hw = np.random.default_rng(4).integers(0, 3, (40, 40), dtype=np.uint8)
    data = to_palette_png(noise_hw, CLASSES)
    with pytest.raises(ValueError, match="PNG"):
        from_png(data[: int(len(data) * share)])


def test_polygons_mark_holes() -> None:
    mask_hw = np.zeros((20, 30), np.uint8)
    mask_hw[2:18, 3:25] = 1
    mask_hw[6:12, 8:16] = 0
    outline, hole = to_polygons(mask_hw)["polygons"]
    assert not outline["hole"]
    assert hole["hole"]
    assert sorted(map(tuple, outline["points"])) == [(3, 2), (3, 17), (24, 2), (24, 17)]


@pytest.mark.parametrize("mask_format", MASK_FORMATS)
def test_a_view_into_a_canvas_is_encoded_like_its_copy(mask_format: str) -> None:
    canvas_hw = np.random.default_rng(1).integers(0, 2, (40, 60), dtype=np.uint8)
    view_hw = canvas_hw[5:30, 7:50]
    assert encode_mask(view_hw, mask_format) == encode_mask(view_hw.copy(), mask_format)


def test_what_is_no_label_map_is_refused() -> None:
    colour = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    for data in (b"no png", colour):
        with pytest.raises(ValueError, match="single-channel"):
            from_png(data)
