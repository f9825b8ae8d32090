from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.contract.masks import (
    MASK_FORMATS,
    encode_mask,
    from_png,
    from_rle,
    to_polygons,
    to_rle,
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
