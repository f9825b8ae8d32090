from __future__ import annotations

import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.geometry import crop_canvas, fit_image, plan_fit
from service.contract.model_card import InputSize
from service.errors import InvalidPictureError, PayloadTooLargeError
from service.streams.pictures import PictureHeader, decode_fitted, decode_picture, read_header

MAX_PIXELS = 1_000_000
SIZE = InputSize(height=32, width=64)


def encode(image: np.ndarray, suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, image, list(options))[1].tobytes()


@pytest.fixture(scope="module")
def image_bgr() -> np.ndarray:
    return cv2.blur(np.random.default_rng(3).integers(0, 256, (90, 160, 3), dtype=np.uint8), (5, 5))


def png_of_size(width: int, height: int) -> bytes:
    """A small file with valid checksums whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 1000)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """The JPEG with one more segment right after its start."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_picture_is_decoded_to_rgb(image_bgr: np.ndarray, suffix: str) -> None:
    data = encode(image_bgr, suffix)
    image_hwc = decode_picture(data, max_pixels=MAX_PIXELS)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(image_hwc, expected)
    assert read_header(data) == PictureHeader({".jpg": "jpeg", ".png": "png"}[suffix], 160, 90)


def test_a_progressive_jpeg_is_read(image_bgr: np.ndarray) -> None:
    data = encode(image_bgr, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert read_header(data) == PictureHeader("jpeg", 160, 90)
    assert decode_picture(data, max_pixels=MAX_PIXELS).shape == (90, 160, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((8, 9), 77, np.uint8), (77, 77, 77)),
        (np.full((8, 9, 3), (1, 2, 3), np.uint8), (3, 2, 1)),
        (np.full((8, 9, 4), (1, 2, 3, 0), np.uint8), (3, 2, 1)),
        (np.full((8, 9, 4), (256, 512, 768, 9), np.uint16), (3, 2, 1)),
    ],
    ids=["grey", "colour", "transparent", "16-bit transparent"],
)
def test_every_kind_of_png_becomes_8_bit_rgb(image: np.ndarray, expected: tuple[int, int, int]) -> None:
    image_hwc = decode_picture(encode(image, ".png"), max_pixels=MAX_PIXELS)
    assert image_hwc.shape == (8, 9, 3)
    assert image_hwc.dtype == np.uint8
    assert tuple(image_hwc[0, 0]) == expected


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_grey_levels_come_out_in_three_equal_channels(suffix: str) -> None:
    levels_hw = np.tile(np.arange(256, dtype=np.uint8), (64, 2))
    data = encode(levels_hw, suffix, cv2.IMWRITE_JPEG_QUALITY, 100)
    whole_hwc = decode_picture(data, max_pixels=MAX_PIXELS)
    assert np.abs(whole_hwc.astype(int) - levels_hw[:, :, None]).max() <= (0 if suffix == ".png" else 2)
    size = InputSize(height=32, width=256)
    fitted_hwc, _, _ = decode_fitted(data, size, "letterbox", max_pixels=MAX_PIXELS)
    for image_hwc in (whole_hwc, fitted_hwc):
        assert (image_hwc == image_hwc[:, :, :1]).all()


@pytest.mark.parametrize("channels", ["grey", "grey with alpha"])
def test_16_bit_grey_is_refused_because_its_high_byte_would_be_black(channels: str) -> None:
    hounsfield_hw = np.full((8, 9), 1064, np.uint16)
    data = bytearray(encode(hounsfield_hw, ".png"))
    if channels == "grey with alpha":
        data[25] = 4  # OpenCV writes none; the header alone is enough to refuse it
    for decode in (decode_picture, lambda data, **limits: decode_fitted(data, SIZE, "stretch", **limits)):
        with pytest.raises(InvalidPictureError, match="16-bit grey") as refused:
            decode(bytes(data), max_pixels=MAX_PIXELS)
        assert "0 to 255" in refused.value.remedy


def test_the_exif_orientation_is_ignored(image_bgr: np.ndarray) -> None:
    turned = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    plain = encode(image_bgr, ".jpg")
    data = with_segment(plain, 0xE1, turned)
    turning = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert turning.shape == (160, 90, 3), "the test's EXIF is not understood, so the test shows nothing"
    np.testing.assert_array_equal(
        decode_picture(data, max_pixels=MAX_PIXELS), decode_picture(plain, max_pixels=MAX_PIXELS)
    )


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_picture_is_refused(image_bgr: np.ndarray, suffix: str, share: float) -> None:
    data = encode(image_bgr, suffix)
    with pytest.raises(InvalidPictureError):
        decode_picture(data[: int(len(data) * share)], max_pixels=MAX_PIXELS)


def test_a_truncated_jpeg_is_refused_although_its_thumbnail_is_whole(image_bgr: np.ndarray) -> None:
    thumbnail = encode(image_bgr[:16, :16], ".jpg")
    data = with_segment(encode(image_bgr, ".jpg"), 0xE1, b"Exif\0\0" + thumbnail)
    assert decode_picture(data, max_pixels=MAX_PIXELS).shape == (90, 160, 3)
    with pytest.raises(InvalidPictureError, match="end marker"):
        decode_picture(data[:-200], max_pixels=MAX_PIXELS)


def test_bytes_after_the_end_do_no_harm(image_bgr: np.ndarray) -> None:
    for suffix in (".jpg", ".png"):
        padded = encode(image_bgr, suffix) + bytes(500)
        assert decode_picture(padded, max_pixels=MAX_PIXELS).shape == (90, 160, 3)


@pytest.mark.parametrize("size", [(30_000, 30_000), (1_000_001, 1), (2**31 - 1, 2**31 - 1)])
def test_a_huge_picture_is_refused_before_it_is_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(PayloadTooLargeError, match=f"{size[0]} x {size[1]}"):
        decode_picture(png_of_size(*size), max_pixels=MAX_PIXELS)


def test_a_huge_jpeg_is_refused_before_it_is_decoded(
    image_bgr: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(encode(image_bgr, ".jpg"))
    at = data.find(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(PayloadTooLargeError, match="60000 x 60000"):
        decode_picture(bytes(data), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no bytes"),
        (b"hello, I am no picture", "begin with 68 65"),
        (b"GIF89a" + bytes(100), "JPEG or PNG"),
        (b"\xff\xd8\xff", "end marker"),
        (b"\xff\xd8\xff\xe0\x00\x00" + bytes(50), "frame header|end marker"),
        (b"\x89PNG\r\n\x1a\n", "end marker"),
        (png_of_size(0, 5), "IHDR"),
        (png_of_size(100, 100), "damaged"),
    ],
    ids=["empty", "text", "gif", "jpeg start", "jpeg nonsense", "png signature", "no width", "short data"],
)
def test_what_is_no_picture_is_named(data: bytes, message: str) -> None:
    with pytest.raises(InvalidPictureError, match=message):
        decode_picture(data, max_pixels=MAX_PIXELS)


def test_a_picture_of_another_codec_is_refused(image_bgr: np.ndarray) -> None:
    with pytest.raises(InvalidPictureError, match="is png"):
        decode_picture(encode(image_bgr, ".png"), max_pixels=MAX_PIXELS, codec="jpeg")


@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_no_bytes_crash_the_header_reader(data: bytes, start: bytes) -> None:
    try:
        header = read_header(start + data)
    except InvalidPictureError:
        return
    assert header.width > 0
    assert header.height > 0


@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_flipped_byte_gives_a_picture_or_one_of_our_errors(at: int, value: int) -> None:
    for suffix in (".jpg", ".png"):
        data = bytearray(encode(np.full((24, 32, 3), 90, np.uint8), suffix))
        data[at % len(data)] = value
        try:
            image_hwc = decode_picture(bytes(data), max_pixels=MAX_PIXELS)
        except (InvalidPictureError, PayloadTooLargeError):
            continue
        assert image_hwc.ndim == 3


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [
        (1920, 1080, 4),
        (1281, 721, 2),
        (767, 431, 1),
        (768, 448, 2),
        (6144, 3584, 8),
        (300, 200, 1),
        (1080, 1920, 8),
    ],
)
def test_a_large_jpeg_is_decoded_smaller_and_lies_where_it_would(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, scale: int
) -> None:
    size = InputSize(height=224, width=384)
    rng = np.random.default_rng(0)
    image_hwc = cv2.resize(
        rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    data = cv2.imencode(".jpg", image_hwc[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    decoded: list[tuple[int, ...]] = []
    imdecode = cv2.imdecode

    def watch(*arguments: Any) -> Any:
        decoded.append(imdecode(*arguments).shape)
        return imdecode(*arguments)

    monkeypatch.setattr(cv2, "imdecode", watch)
    canvas_hwc, fit, _ = decode_fitted(data, size, "letterbox", max_pixels=10**8)
    assert decoded == [(-(-height // scale), -(-width // scale), 3)]
    assert fit == plan_fit(height, width, size)
    expected_hwc = fit_image(decode_picture(data, max_pixels=10**8), fit)
    apart = np.abs(canvas_hwc.astype(int) - expected_hwc)
    assert apart.mean() < (2.5 if scale > 1 else 1e-9)
    content = crop_canvas(canvas_hwc, fit).shape[0] * crop_canvas(canvas_hwc, fit).shape[1]
    assert (canvas_hwc.sum(axis=2) == 0).sum() >= 224 * 384 - content


def test_a_png_is_never_decoded_smaller() -> None:
    image_hwc = np.random.default_rng(0).integers(0, 256, (448, 768, 3), dtype=np.uint8)
    size = InputSize(height=224, width=384)
    canvas_hwc, fit, _ = decode_fitted(
        encode(image_hwc[:, :, ::-1], ".png"), size, "letterbox", max_pixels=10**8
    )
    np.testing.assert_array_equal(canvas_hwc, fit_image(image_hwc, fit))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_large_jpeg_is_refused_as_a_small_one_is(share: float) -> None:
    image_hwc = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", image_hwc)[1].tobytes()
    with pytest.raises(InvalidPictureError, match="end marker"):
        decode_fitted(
            data[: int(len(data) * share)], InputSize(height=224, width=384), "letterbox", max_pixels=10**8
        )
