"""The bytes of an audit record: whatever is cut off or changed, what is read back is what was written."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from service.audit.blocks import Block, BlockHead, Damage, pack_block, read_blocks

AT = datetime(2026, 1, 18, 10, 15, 2, 123456, UTC)
lines_of_blocks = st.lists(
    st.lists(st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")), max_size=6),
    min_size=1,
    max_size=5,
)


def write(blocks: list[list[bytes]]) -> tuple[bytes, list[int]]:
    """Blocks in a chain, and where each of them ends."""
    data, ends, previous = b"", [], None
    for number, lines in enumerate(blocks, start=1):
        head = BlockHead(
            surgseg="1", run="one", number=number, at=AT, previous=previous, lost=0, entries=len(lines)
        )
        packed, previous = pack_block(head, lines)
        data += packed
        ends.append(len(data))
    return data, ends


def read(data: bytes) -> tuple[list[Block], list[Damage]]:
    found = list(read_blocks(data))
    return [one for one in found if isinstance(one, Block)], [one for one in found if isinstance(one, Damage)]


@given(blocks=lines_of_blocks, cut=st.floats(0, 1))
def test_a_record_cut_anywhere_gives_every_whole_block_and_nothing_else(
    blocks: list[list[bytes]], cut: float
) -> None:
    data, ends = write(blocks)
    length = round(cut * len(data))
    whole, damages = read(data[:length])
    expected = [tuple(lines) for lines, end in zip(blocks, ends, strict=True) if end <= length]
    assert [block.lines for block in whole] == expected
    tail = max([0, *(end for end in ends if end <= length)])
    assert damages == ([Damage(tail, length, is_tail=True)] if tail < length else [])


@settings(max_examples=200)
@given(blocks=lines_of_blocks, place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_changed_byte_costs_its_own_block_and_no_other(
    blocks: list[list[bytes]], place: float, change: int
) -> None:
    data, ends = write(blocks)
    at = int(place * len(data))
    hit = next(index for index, end in enumerate(ends) if at < end)
    whole, _ = read(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
    got = {block.head.number: block.lines for block in whole}
    others = {number: tuple(lines) for number, lines in enumerate(blocks, start=1) if number != hit + 1}
    # a few bits of a gzip header mean nothing, and the block that has them is whole
    assert got in (others, {**others, hit + 1: tuple(blocks[hit])})


@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_record_give_no_block(data: bytes) -> None:
    assert read(data)[0] == []
    assert read(gzip.compress(data))[0] == []


def test_zeros_at_the_end_as_a_crash_of_the_machine_leaves_them_are_left_out() -> None:
    data, _ = write([[b"a"], [b"b"]])
    whole, damages = read(data + bytes(5000))
    assert [block.lines for block in whole] == [(b"a",), (b"b",)]
    assert damages == [Damage(len(data), len(data) + 5000, is_tail=True)]


def test_blocks_are_a_chain_and_any_gzip_reads_them() -> None:
    data, _ = write([[b"{}"], [], [b"1", b"2"]])
    whole, _ = read(data)
    assert [block.head.previous for block in whole] == [None, whole[0].digest, whole[1].digest]
    text = gzip.decompress(data).decode().splitlines()
    assert [json.loads(line)["kind"] for line in text if '"kind"' in line] == ["block"] * 3
    assert len(text) == 3 + 3


def test_a_block_that_inflates_beyond_all_measure_is_refused() -> None:
    data, _ = write([[b"a"]])
    bomb = gzip.compress(bytes(80 * 2**20), mtime=0)
    whole, damages = read(bomb + data)
    assert [block.lines for block in whole] == [(b"a",)]
    assert damages == [Damage(0, len(bomb), is_tail=False)]
