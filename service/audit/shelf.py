"""Which files a record keeps. Pure: no clock, no disk."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

_NAME = re.compile(r"audit-(\d{8,})-\d{8}T\d{6}Z\.jsonl\.gz")


class Cause(StrEnum):
    """Why a file was deleted."""

    AGE = "age"
    """Its last entry is older than the record is to be kept."""
    SIZE = "size"
    """The record would have grown beyond its cap."""


@dataclass(frozen=True, slots=True)
class KeepRules:
    """How long and how much is kept, in seconds and bytes; a file ends at `file_bytes` or when `file_s` old."""

    keep_s: float
    max_bytes: int
    file_bytes: int
    file_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class RecordFile:
    """A file of a record. `number` counts the files of its folder; `written_at` is the wall clock of its last write."""

    path: Path
    number: int
    size_bytes: int
    written_at: float


def name_file(number: int, at: float) -> str:
    """The name of a file begun at the wall clock's `at`. Names sort in the order of writing, whatever the clock did."""
    return f"audit-{number:08d}-{datetime.fromtimestamp(at, UTC):%Y%m%dT%H%M%SZ}.jsonl.gz"


def read_number(name: str) -> int | None:
    """The number in a name of `name_file`; None for any other name."""
    found = _NAME.fullmatch(name)
    return int(found.group(1)) if found else None


def choose_deletions(
    closed: Iterable[RecordFile], rules: KeepRules, *, now: float, other_bytes: int = 0
) -> list[tuple[RecordFile, Cause]]:
    """The files to delete at the wall clock's `now`, the oldest first.

    `closed` are those that nobody writes any more; `other_bytes` is what lies, or is about to lie, beside them.
    """
    files = sorted(closed, key=lambda file: file.number)
    total_bytes = other_bytes + sum(file.size_bytes for file in files)
    chosen = []
    for file in files:
        if now - file.written_at > rules.keep_s:
            chosen.append((file, Cause.AGE))
        elif total_bytes > rules.max_bytes:
            chosen.append((file, Cause.SIZE))
        else:
            continue
        total_bytes -= file.size_bytes
    return chosen
