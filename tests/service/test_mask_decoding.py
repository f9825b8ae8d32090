"""Every form of a mask gives the mask back, pixel for pixel."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.contract.geometry import Mask
from service.contract.masks import MaskFormat, decode_mask, encode_mask

FORMATS = get_args(MaskFormat)
SPECKLED = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 3)
)


@pytest.mark.parametrize("mask_format", FORMATS)
@settings(deadline=None)
@given(mask_hw=SPECKLED, scale=st.integers(1, 4))
def test_decoding_gives_the_encoded_mask(mask_format: MaskFormat, mask_hw: Mask, scale: int) -> None:
    enlarged_hw = np.ascontiguousarray(mask_hw.repeat(scale, 0).repeat(scale, 1))
    assert np.array_equal(decode_mask(encode_mask(enlarged_hw, mask_format), mask_format), enlarged_hw)


def test_a_shape_inside_a_hole_of_another_survives_as_polygons() -> None:
    mask_hw = np.zeros((60, 80), np.uint8)
    mask_hw[5:55, 5:75] = 1
    mask_hw[15:45, 15:65] = 0
    mask_hw[25:35, 25:55] = 1
    mask_hw[28:32, 30:50] = 2
    assert np.array_equal(decode_mask(encode_mask(mask_hw, "polygons"), "polygons"), mask_hw)


@pytest.mark.parametrize("mask_format", FORMATS)
@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\x89PNG\r\n\x1a\n", b'{"size": [2, 2], "segments": [{}], "polygons": [{}]}']
)
def test_bytes_that_are_no_mask_give_a_value_error(mask_format: MaskFormat, data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_mask(data, mask_format)
