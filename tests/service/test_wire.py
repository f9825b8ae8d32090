"""The bytes of the streaming protocol."""

from __future__ import annotations

import json
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import errors
from service.errors import InvalidPictureError, InvalidRequestError, StreamError, SurgsegError
from service.wire import (
    EVENT_TYPES,
    MAX_CAPTURED_AT_US,
    MaskHeader,
    PushedFrame,
    describe_error,
    encode_picture,
    pack_event,
    pack_frame,
    pack_mask,
    rebuild_error,
    unpack_event,
    unpack_frame,
    unpack_mask,
)

COUNTS = st.integers(0, 2**53)
HEADERS = st.builds(
    MaskHeader,
    sequence=COUNTS,
    captured_at_us=st.integers(0, MAX_CAPTURED_AT_US),
    pts_s=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    width=st.integers(1, 65535),
    height=st.integers(1, 65535),
    mask=st.sampled_from(["png", "rle", "polygons"]),
    latency_ms=st.dictionaries(st.text(max_size=8), st.floats(0, 1e6)),
    dropped=st.dictionaries(st.text(max_size=8), COUNTS),
    received=COUNTS,
    skipped=COUNTS,
    model=st.text(max_size=12),
)


def make_header(**changes: Any) -> MaskHeader:
    values: dict[str, Any] = {
        "sequence": 3,
        "captured_at_us": 12,
        "pts_s": None,
        "width": 640,
        "height": 480,
        "mask": "png",
        "latency_ms": {"infer": 1.5},
        "dropped": {},
        "received": 3,
        "skipped": 0,
        "model": "0123456789ab",
    }
    return MaskHeader(**{**values, **changes})


@settings(deadline=None)
@given(captured_at_us=st.integers(0, MAX_CAPTURED_AT_US), payload=st.binary(min_size=1))
def test_a_pushed_frame_survives_the_wire(captured_at_us: int, payload: bytes) -> None:
    frame = PushedFrame(captured_at_us, payload)
    assert unpack_frame(pack_frame(frame)) == frame


def test_a_pushed_frame_is_eight_big_endian_bytes_and_the_payload() -> None:
    assert pack_frame(PushedFrame(258, b"xyz")) == b"\0\0\0\0\0\0\x01\x02xyz"


@settings(deadline=None)
@given(message=st.binary(max_size=8))
def test_a_frame_without_whole_header_and_payload_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        unpack_frame(message)


@pytest.mark.parametrize("frame", [PushedFrame(-1, b"x"), PushedFrame(2**64, b"x"), PushedFrame(0, b"")])
def test_a_frame_that_does_not_fit_the_wire_is_not_sent(frame: PushedFrame) -> None:
    with pytest.raises(InvalidRequestError):
        pack_frame(frame)


@settings(deadline=None)
@given(header=HEADERS, mask=st.binary())
def test_a_mask_survives_the_wire(header: MaskHeader, mask: bytes) -> None:
    assert unpack_mask(pack_mask(header, mask)) == (header, mask)


def test_a_mask_is_four_big_endian_bytes_of_length_json_and_the_mask() -> None:
    message = pack_mask(make_header(), b"mask")
    (size,) = struct.unpack(">I", message[:4])
    assert json.loads(message[4 : 4 + size])["sequence"] == 3
    assert message[4 + size :] == b"mask"


def test_header_fields_of_a_later_version_are_ignored() -> None:
    text = json.dumps({**json.loads(pack_mask(make_header(), b"")[4:]), "later": 1}).encode()
    assert unpack_mask(struct.pack(">I", len(text)) + text) == (make_header(), b"")


@settings(deadline=None)
@given(message=st.binary())
def test_bytes_that_are_no_answer_give_a_stream_error_and_nothing_else(message: bytes) -> None:
    try:
        header, _ = unpack_mask(message)
    except StreamError:
        return
    assert isinstance(header, MaskHeader)


@settings(deadline=None)
@given(header=HEADERS, cut=st.integers(0, 10**6))
def test_an_answer_that_is_cut_short_inside_its_header_is_refused(header: MaskHeader, cut: int) -> None:
    message = pack_mask(header, b"")
    with pytest.raises(StreamError):
        unpack_mask(message[: cut % len(message)])


@pytest.mark.parametrize(
    "name", ["sequence", "captured_at_us", "pts_s", "width", "mask", "latency_ms", "skipped"]
)
@pytest.mark.parametrize("value", ["missing", True, [1]])
def test_a_header_with_a_bad_field_names_it(name: str, value: object) -> None:
    values = json.loads(pack_mask(make_header(), b"")[4:])
    values[name] = value
    if value == "missing":
        del values[name]
    text = json.dumps(values).encode()
    with pytest.raises(StreamError, match=name):
        unpack_mask(struct.pack(">I", len(text)) + text)


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_an_event_survives_the_wire(event_type: Any) -> None:
    assert unpack_event(pack_event(event_type, detail="Ärger", n=1)) == {
        "type": event_type, "detail": "Ärger", "n": 1,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", "{", '{"type": 1}', "{}", "null"])
def test_text_that_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(StreamError):
        unpack_event(text)


@pytest.mark.parametrize("kind", SurgsegError.__subclasses__())
def test_an_error_keeps_its_kind_and_its_three_parts(kind: type[SurgsegError]) -> None:
    error = kind("Found this.", "that", "Do so.")
    rebuilt = rebuild_error(json.loads(pack_event("error", **describe_error(error))))
    assert type(rebuilt) is kind
    assert (rebuilt.found, rebuilt.expected, rebuilt.remedy) == ("Found this.", "that", "Do so.")


@pytest.mark.parametrize("fields", [{}, {"type": "about:blank", "title": "Not Found"}, {"slug": 3}])
def test_an_unknown_error_still_becomes_one(fields: dict[str, object]) -> None:
    error = rebuild_error(fields)
    assert type(error) is errors.SurgsegError
    assert str(error)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_rgb_picture_is_refused_before_it_is_sent(image: Any) -> None:
    with pytest.raises(InvalidPictureError, match="uint8 RGB"):
        encode_picture(image, "jpeg")


def test_a_picture_keeps_its_channel_order() -> None:
    red_hwc = np.zeros((4, 4, 3), np.uint8)
    red_hwc[:, :, 0] = 255
    decoded_bgr = cv2.imdecode(
        np.frombuffer(encode_picture(red_hwc[::-1, ::-1], "png"), np.uint8), cv2.IMREAD_COLOR
    )
    assert decoded_bgr[0, 0].tolist() == [0, 0, 255]
