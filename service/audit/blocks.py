"""The bytes of a record: blocks of JSON lines, each a gzip member of its own, chained by hash. Pure.

`zcat` and `jq` read a record; what a crash cut off in its last block costs that block and no other.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

FORMAT_VERSION = 1
_GZIP = 31  # zlib's name for the window of a gzip member
_MAGIC = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"  # how each member of ours begins
_READ_BYTES = 64 * 1024
_MOST_TEXT_BYTES = 64 * 2**20  # far more than any block holds: what inflates to more is not ours


class BlockHead(BaseModel):
    """The first line of a block.

    `run` names the service's process, `number` counts its blocks from 1. `previous` is the SHA-256 of the uncompressed
    block before, which may be another run's; None for the first of all. `lost` counts entries that were to come since
    that block and could not be written. `entries` is how many lines follow.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["block"] = "block"
    format_version: int = FORMAT_VERSION
    surgseg: str
    run: str
    number: int
    at: datetime
    previous: str | None
    lost: int
    entries: int


@dataclass(frozen=True, slots=True)
class Block:
    """A whole block: its head, its lines, and the SHA-256 of them all as the next head has it. `end` is an offset."""

    head: BlockHead
    lines: tuple[bytes, ...]
    digest: str
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes from `start` to `end` that are no whole block. `is_tail`: nothing whole follows, as after a crash."""

    start: int
    end: int
    is_tail: bool


def pack_block(head: BlockHead, lines: Sequence[bytes]) -> tuple[bytes, str]:
    """A block as bytes, and its digest. Lines hold no line end."""
    text = b"".join(line + b"\n" for line in (head.model_dump_json().encode(), *lines))
    deflater = zlib.compressobj(wbits=_GZIP)
    return deflater.compress(text) + deflater.flush(), hashlib.sha256(text).hexdigest()


def read_blocks(data: bytes) -> Iterator[Block | Damage]:
    """Every whole block, in order, and what lies between them. Never raises for what is in the data."""
    start = 0
    while start < len(data):
        block = _read_block(data, start)
        if block is not None:
            yield block
            start = block.end
            continue
        resumes_at = _find_block(data, start + 1)
        yield Damage(start, len(data) if resumes_at is None else resumes_at, is_tail=resumes_at is None)
        if resumes_at is None:
            return
        start = resumes_at


def _find_block(data: bytes, start: int) -> int | None:
    """Where the next whole block begins."""
    while (start := data.find(_MAGIC, start)) >= 0:
        if _read_block(data, start) is not None:
            return start
        start += 1
    return None


def _read_block(data: bytes, start: int) -> Block | None:
    inflated = _inflate(data, start)
    if inflated is None:
        return None
    text, end = inflated
    first, *lines = text.split(b"\n")
    try:
        head = BlockHead.model_validate_json(first)
    except ValidationError:
        return None
    if head.entries != len(lines) - 1 or lines.pop():
        return None
    return Block(head, tuple(lines), hashlib.sha256(text).hexdigest(), end)


def _inflate(data: bytes, start: int) -> tuple[bytes, int] | None:
    """The text of the member that begins at `start`, and where it ends; None where none is whole and sound."""
    inflater = zlib.decompressobj(wbits=_GZIP)
    pieces: list[bytes] = []
    size_bytes, at = 0, start
    try:
        while not inflater.eof:
            chunk = data[at : at + _READ_BYTES]
            if not chunk or size_bytes > _MOST_TEXT_BYTES:
                return None
            pieces.append(inflater.decompress(chunk))
            size_bytes += len(pieces[-1])
            at += len(chunk)
    except zlib.error:
        return None
    return b"".join(pieces), at - len(inflater.unused_data)
