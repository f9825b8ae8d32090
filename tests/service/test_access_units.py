"""Looking into access units: real ones of real encoders, and bytes of no kind at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidPictureError
from service.streams.access_units import KeyGate, inspect_unit
from tests.bitstreams import encode_codes

UNITS = {codec: encode_codes(range(6), codec, keys_every=3) for codec in ("h264", "hevc")}
CODECS = list(UNITS)


@pytest.mark.parametrize("codec", CODECS)
def test_key_frames_and_their_parameter_sets_are_found(codec: str) -> None:
    found = [inspect_unit(unit, codec) for unit in UNITS[codec]]
    assert [info.is_key for info in found] == [True, False, False] * 2
    assert [bool(info.parameters) for info in found] == [True, False, False] * 2


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", [b"x" * 100, b"\0\0\0\x05abcde", b"\0\0\1", b"\xff\xd8\xff\xe0"])
def test_what_is_not_annex_b_is_refused_with_a_remedy(codec: str, data: bytes) -> None:
    with pytest.raises(InvalidPictureError, match="Annex B") as refusal:
        inspect_unit(data, codec)
    assert "mp4toannexb" in refusal.value.remedy


@given(data=st.binary(max_size=200), codec=st.sampled_from(CODECS))
def test_no_bytes_make_it_fail_in_another_way(data: bytes, codec: str) -> None:
    for candidate in (data, b"\0\0\1" + data):
        try:
            info = inspect_unit(candidate, codec)
        except InvalidPictureError:
            continue
        assert len(info.parameters) <= len(candidate) + candidate.count(b"\0\0\1") * 3


@pytest.mark.parametrize("codec", CODECS)
def test_a_stream_begins_at_a_key_frame_and_again_after_the_gate_was_closed(codec: str) -> None:
    gate, units = KeyGate(codec), UNITS[codec]
    assert [gate.admit(unit) is not None for unit in units[1:]] == [False, False, True, True, True]
    gate.close()
    assert gate.admit(units[1]) is None
    assert gate.admit(units[3]) == (units[3], True)
    assert gate.admit(units[4]) == (units[4], False)


@pytest.mark.parametrize("is_lost", [True, False], ids=["a new decoder", "a decoder that may have skipped"])
@pytest.mark.parametrize("codec", CODECS)
def test_parameter_sets_that_came_once_are_put_before_every_later_key_frame(
    codec: str, is_lost: bool
) -> None:
    gate, units = KeyGate(codec), UNITS[codec]
    parameters = inspect_unit(units[0], codec).parameters
    bare = (
        units[3].replace(parameters, b"") if parameters in units[3] else _without_parameters(units[3], codec)
    )
    assert inspect_unit(bare, codec).is_key
    assert not inspect_unit(bare, codec).parameters
    assert gate.admit(units[0]) is not None
    if is_lost:
        gate.close()
    assert gate.admit(bare) == (parameters + bare, True)
    assert gate.admit(units[4]) == (units[4], False)
    assert gate.admit(bare) == (parameters + bare, True)


def _without_parameters(unit: bytes, codec: str) -> bytes:
    """Of a key frame what comes after its parameter sets."""
    kinds = {"h264": lambda byte: byte & 31 in (7, 8), "hevc": lambda byte: byte >> 1 & 63 in (32, 33, 34)}
    parts = unit.split(b"\0\0\1")[1:]
    return b"".join(b"\0\0\1" + part for part in parts if not kinds[codec](part[0]))
