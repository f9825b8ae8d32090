"""Reading a record: every entry, and whether anything is missing.

from service.audit.record import Record

record = Record("audit/")  # a folder, or one of its files
for run, entry in record.entries():
    if entry.kind == "mask":
        print(run, entry.stream, entry.sequence, entry.at, entry.model, entry.mask_hw.shape)
print(record.problems, record.lost)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from service.audit.blocks import FORMAT_VERSION, Block, Damage, read_blocks
from service.audit.entries import Entry, read_line
from service.audit.folder import list_files
from service.errors import DataError


class Fault(StrEnum):
    """What is wrong with a record."""

    CUT = "cut"
    """The end of a file is no whole block: the service was killed, or is writing it now."""
    DAMAGED = "damaged"
    """Bytes between whole blocks are none."""
    BROKEN = "broken"
    """A block does not follow the one before it: something was taken out, put in, or changed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault and where it is. What is faulty gives no entry; a CUT alone is what a crash leaves, and no more."""

    fault: Fault
    path: Path
    detail: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.fault}: {self.detail}"


class Record:
    """A record on the disk, as it was when `entries` read it; it may be written to meanwhile.

    `problems`, `lost` (entries that the service could not write), `files` and `blocks` are complete when `entries` has
    come to its end. Raises DataError where there is no record.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._paths = _find_files(self._path)
        self.files = len(self._paths)
        self.blocks = 0
        self.lost = 0
        self.problems: list[Problem] = []

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Every whole entry, in the order of writing, with the name of its run: a stream's id is unique within one.

        A stream's masks are in order; a frame that was dropped may stand after later ones. Raises DataError for a file
        that cannot be read, is no record, or was written by a later version.
        """
        self.blocks, self.lost, self.problems = 0, 0, []
        last: Block | None = None
        for path in self._paths:
            found = False
            for block in self._read_file(path):
                found = True
                if last is not None and last.digest == block.digest:
                    continue  # written again after the disk had failed
                self._check_link(path, last, block)
                last = block
                self.blocks += 1
                self.lost += block.head.lost
                yield from self._read_entries(path, block)
            self._check_is_ours(path, found)

    def _read_file(self, path: Path) -> Iterator[Block]:
        for block in read_blocks(_read_bytes(path)):
            if isinstance(block, Block):
                yield block
                continue
            self._note_damage(path, block)

    def _note_damage(self, path: Path, damage: Damage) -> None:
        where = f"bytes {damage.start} to {damage.end}"
        if damage.is_tail:
            self._note(Fault.CUT, path, f"{where}, its end, are no whole block and were left out")
        else:
            self._note(Fault.DAMAGED, path, f"{where} cannot be read and were left out")

    def _check_link(self, path: Path, last: Block | None, block: Block) -> None:
        head = block.head
        if last is not None and head.previous != last.digest:
            before, name = last.head, f"block {head.number} of {head.run}"
            self._note(Fault.BROKEN, path, f"{name} does not follow block {before.number} of {before.run}")

    def _read_entries(self, path: Path, block: Block) -> Iterator[tuple[str, Entry]]:
        head = block.head
        if head.format_version > FORMAT_VERSION:
            raise DataError(
                f"{path} has the format {head.format_version}, written by surgseg {head.surgseg}.",
                f"at most {FORMAT_VERSION}",
                "Read it with that version of surgseg.",
            )
        for line in block.lines:
            try:
                yield head.run, read_line(line)
            except ValueError as error:
                self._note(Fault.DAMAGED, path, f"a line of block {head.number} of {head.run} is {error}")

    def _check_is_ours(self, path: Path, has_blocks: bool) -> None:
        """A file of ours may have no block when the service was killed at its very beginning."""
        if not has_blocks and path == self._path:
            raise DataError(
                f"{path} holds no whole block of an audit record.",
                "a file that a service wrote to SURGSEG_AUDIT",
                "Name that folder, or one of its files.",
            )

    def _note(self, fault: Fault, path: Path, detail: str) -> None:
        self.problems.append(Problem(fault, path, detail))


def _find_files(path: Path) -> list[Path]:
    try:
        files = [file.path for file in list_files(path)] if path.is_dir() else [path] * path.exists()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not files:
        found = f"{path} holds no audit record." if path.exists() else f"There is no {path}."
        raise DataError(found, "a folder that a service wrote to, or one of its files", "Check the path.")
    return files


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be read ({error.strerror}).",
        "an audit record that you may read",
        "Records are readable by the service's user alone: read it as that user, or copy it as root.",
    )
