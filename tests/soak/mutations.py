"""Bitstreams that no encoder would make: real ones, seeded and mutated."""

from __future__ import annotations

import random
from collections.abc import Callable

START_CODE = b"\0\0\1"
_PARAMETER_KINDS = {
    "h264": lambda byte: byte & 31 in (7, 8),
    "hevc": lambda byte: byte >> 1 & 63 in (32, 33, 34),
}


def flip_bits(units: list[bytes], source: random.Random, codec: str) -> list[bytes]:
    """One to fifty bits of some units, anywhere after the start code."""
    return [_flip(unit, source, source.randint(1, 50)) if source.random() < 0.5 else unit for unit in units]


def truncate(units: list[bytes], source: random.Random, codec: str) -> list[bytes]:
    """Some units end early."""
    return [unit[: source.randint(5, len(unit))] if source.random() < 0.5 else unit for unit in units]


def reorder(units: list[bytes], source: random.Random, codec: str) -> list[bytes]:
    """Units swap places, are left out, and come twice."""
    mixed = [unit for unit in units for _ in range(source.choice((0, 1, 1, 1, 2)))]
    for _ in range(source.randint(1, 6)):
        one, other = source.randrange(len(mixed) or 1), source.randrange(len(mixed) or 1)
        if mixed:
            mixed[one], mixed[other] = mixed[other], mixed[one]
    return mixed or units


def change_parameters(units: list[bytes], source: random.Random, codec: str) -> list[bytes]:
    """Bits of parameter sets only: other sizes, other depths, other numbers of reference pictures."""
    return [
        b"".join(
            START_CODE
            + (_flip(part, source, source.randint(1, 4)) if _PARAMETER_KINDS[codec](part[0]) else part)
            for part in unit.split(START_CODE)[1:]
            if part
        )
        or unit
        for unit in units
    ]


def replace_with_noise(units: list[bytes], source: random.Random, codec: str) -> list[bytes]:
    """Units of random bytes behind a start code and a random kind."""
    return [
        START_CODE + source.randbytes(source.randint(1, 3000)) if source.random() < 0.4 else unit
        for unit in units
    ]


MUTATIONS: dict[str, Callable[[list[bytes], random.Random, str], list[bytes]]] = {
    "bits flipped": flip_bits,
    "truncated": truncate,
    "reordered": reorder,
    "parameters changed": change_parameters,
    "noise": replace_with_noise,
}


def _flip(data: bytes, source: random.Random, count: int) -> bytes:
    flipped = bytearray(data)
    for _ in range(count):
        place = source.randrange(4 if len(flipped) > 4 else 0, len(flipped))
        flipped[place] ^= 1 << source.randrange(8)
    return bytes(flipped)
