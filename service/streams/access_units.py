"""Access units of H.264 and HEVC in Annex B form, as far as they must be looked into before they are decoded. Pure.

Only the headers of the units before the first slice are read: this runs in the service's own process, on bytes that
nobody has checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from service.errors import InvalidPictureError

_START_CODE = b"\0\0\1"


@dataclass(frozen=True, slots=True)
class _Kinds:
    """The numbers of the kinds of NAL unit that matter here, and where in the first byte the kind is."""

    shift: int
    mask: int
    slices: range
    keys: range
    parameters: range


_KINDS = {
    "h264": _Kinds(0, 0x1F, slices=range(1, 6), keys=range(5, 6), parameters=range(7, 9)),
    "hevc": _Kinds(1, 0x3F, slices=range(32), keys=range(16, 24), parameters=range(32, 35)),
}


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """`is_key`: decoding can begin here. `parameters`: the parameter sets in it, with their start codes."""

    is_key: bool
    parameters: bytes


def inspect_unit(data: bytes, codec: str) -> UnitInfo:
    """Look at one access unit of `codec`, h264 or hevc. Raises InvalidPictureError where it is not in Annex B form."""
    kinds = _KINDS[codec]
    is_key, parameters, found = False, [], False
    for start, end, kind in _split(data, kinds):
        found = True
        if kind in kinds.parameters:
            parameters.append(_START_CODE + data[start:end])
        if kind in kinds.slices:
            is_key = kind in kinds.keys
            break
    if not found:
        raise InvalidPictureError(
            f"The message has no start code of an {codec} unit in its {len(data)} bytes.",
            "one access unit in Annex B form (00 00 01 before every NAL unit)",
            "Convert it, for example with FFmpeg's h264_mp4toannexb or hevc_mp4toannexb.",
        )
    return UnitInfo(is_key, b"".join(parameters))


def _split(data: bytes, kinds: _Kinds) -> Iterator[tuple[int, int, int]]:
    """First and last byte + 1, and kind, of each NAL unit. The end of a slice is not looked for."""
    at = data.find(_START_CODE)
    while at >= 0 and at + 3 < len(data):
        start = at + 3
        kind = data[start] >> kinds.shift & kinds.mask
        at = -1 if kind in kinds.slices else data.find(_START_CODE, start)
        yield start, at if at >= 0 else len(data), kind


class KeyGate:
    """Lets a stream begin at a key frame, with the parameter sets that its decoder needs.

    A decoder that has just started has seen nothing: until a key frame comes, no unit can be decoded. Parameter sets
    that came earlier are kept and put before each key frame that does not bring its own, because a decoder that is late
    skips to a later one, and may never have seen those that came first.
    """

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._parameters = b""
        self._waits_for_key = True

    def close(self) -> None:
        """The next unit that passes must be a key frame."""
        self._waits_for_key = True

    def admit(self, data: bytes) -> tuple[bytes, bool] | None:
        """The unit to decode and whether it is a key frame; None while one is awaited. Raises InvalidPictureError."""
        info = inspect_unit(data, self._codec)
        if info.parameters:
            self._parameters = info.parameters
        if not info.is_key:
            return None if self._waits_for_key else (data, False)
        self._waits_for_key = False
        return (data if info.parameters else self._parameters + data), True
