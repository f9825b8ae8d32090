"""From entries to files: blocks in a chain, files that can each be read alone, nothing older or more than is kept."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from service.audit.blocks import Block, BlockHead, pack_block, read_blocks
from service.audit.entries import ClosedEntry, Entry, ModelEntry, OpenedEntry, write_line
from service.audit.folder import AppendedFile, RecordFolder
from service.audit.shelf import Cause, KeepRules, RecordFile, choose_deletions

_log = logging.getLogger(__name__)


class RecordWriter:
    """Appends blocks to the record in a folder. One thread; `clock` gives the wall clock's seconds.

    Every file begins with the models and the open streams, so that it can be read without those before it. After an
    OSError the same entries may be given again. `on_deleted` is told of each file that is deleted.
    """

    def __init__(
        self,
        folder: RecordFolder,
        rules: KeepRules,
        *,
        clock: Callable[[], float],
        on_deleted: Callable[[Cause], None],
    ) -> None:
        self._folder = folder
        self._rules = rules
        self._clock = clock
        self._on_deleted = on_deleted
        self._closed = folder.files()
        self._file: AppendedFile | None = None
        self._begun_at = self._written_at = 0.0
        self._file_number = self._closed[-1].number if self._closed else 0
        self._previous = _find_last_digest(self._closed)
        self._number = 0
        self.run = f"{datetime.fromtimestamp(clock(), UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self._models: dict[str, ModelEntry] = {}
        self._streams: dict[str, OpenedEntry] = {}

    def write(self, entries: Sequence[Entry], lost: int = 0) -> int:
        """Append a block, and wait until the disk has it; gives its bytes. Raises OSError."""
        self.tidy()
        if self._file is None:
            entries = (*self._models.values(), *self._streams.values(), *entries)
        head = BlockHead(
            surgseg=version("surgseg"),
            run=self.run,
            number=self._number + 1,
            at=datetime.fromtimestamp(self._clock(), UTC),
            previous=self._previous,
            lost=lost,
            entries=len(entries),
        )
        data, digest = pack_block(head, [write_line(entry) for entry in entries])
        self._append(data)
        self._number, self._previous = head.number, digest
        self._follow(entries)
        return len(data)

    def tidy(self) -> None:
        """End the file when it is full or old, and delete what is kept no longer. Raises OSError."""
        now = self._clock()
        if self._file is not None:
            is_old = now - self._begun_at >= self._rules.file_s
            if is_old or self._file.size_bytes >= self._rules.file_bytes:
                self._end_file()
        self._make_room(0, now)

    def close(self) -> None:
        """End the file, and let go of the folder."""
        self._end_file()
        self._folder.close()

    def _append(self, data: bytes) -> None:
        now = self._clock()
        self._make_room(len(data), now)
        if self._file is None:
            self._file_number += 1
            self._file = self._folder.create(self._file_number, now)
            self._begun_at = now
        try:
            self._file.append(data)
        except OSError:
            self._end_file()
            raise
        self._written_at = now

    def _end_file(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        file.close()
        closed = RecordFile(file.path, file.number, file.size_bytes, self._written_at)
        if not file.size_bytes:
            self._folder.delete(closed)
            return
        self._closed.append(closed)
        # whoever keeps the log elsewhere can tell by it that the record was not cut off or made again
        _log.info("Audit file %s ends with block %d, %s.", file.path.name, self._number, self._previous)

    def _make_room(self, coming_bytes: int, now: float) -> None:
        other_bytes = coming_bytes + (self._file.size_bytes if self._file else 0)
        for file, cause in choose_deletions(self._closed, self._rules, now=now, other_bytes=other_bytes):
            self._folder.delete(file)
            self._closed.remove(file)
            self._on_deleted(cause)
            level = logging.WARNING if cause is Cause.SIZE else logging.INFO
            _log.log(level, "Audit file %s is deleted because of its %s.", file.path.name, cause.value)

    def _follow(self, entries: Sequence[Entry]) -> None:
        """Keep what the next file has to begin with."""
        for entry in entries:
            if isinstance(entry, ModelEntry):
                self._models[entry.fingerprint] = entry
            elif isinstance(entry, OpenedEntry):
                self._streams[entry.stream] = entry
            elif isinstance(entry, ClosedEntry):
                self._streams.pop(entry.stream, None)


def _find_last_digest(files: Sequence[RecordFile]) -> str | None:
    """The digest of the last whole block, which the next one is chained to."""
    for file in reversed(files):
        blocks = [one for one in read_blocks(file.path.read_bytes()) if isinstance(one, Block)]
        if blocks:
            return blocks[-1].digest
    return None
