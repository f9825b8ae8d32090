"""The folder of a record: its files on the disk, readable by nobody but their owner."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from service.audit.shelf import RecordFile, name_file, read_number
from service.errors import InvalidRequestError

_FILE_MODE, _FOLDER_MODE = 0o600, 0o700
_LOCK_NAME = ".lock"


class RecordFolder:
    """A folder that this process alone writes to, until `close`. One thread at a time.

    Raises InvalidRequestError when it cannot be made, or another service has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            self._lock_fd = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        except OSError as error:
            raise _refuse(path, f"cannot be written to ({error.strerror})") from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_fd)
            raise _refuse(path, "is being written to by another service") from error

    def close(self) -> None:
        """Let another service have it."""
        os.close(self._lock_fd)

    def files(self) -> list[RecordFile]:
        """The record's files, the oldest first; what else lies here is left alone."""
        return list_files(self.path)

    def create(self, number: int, at: float) -> AppendedFile:
        """A new file. Raises OSError."""
        path = self.path / name_file(number, at)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = AppendedFile(path, number, os.open(path, flags, _FILE_MODE))
        try:
            self._sync()
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file

    def delete(self, file: RecordFile) -> None:
        """Delete a file; one that is gone already is no error. Raises OSError."""
        file.path.unlink(missing_ok=True)

    def _sync(self) -> None:
        """A new name is on the disk only when its folder is."""
        folder_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)


class AppendedFile:
    """A file that only grows, by whole blocks. One thread."""

    def __init__(self, path: Path, number: int, fd: int) -> None:
        self.path = path
        self.number = number
        self.size_bytes = 0
        self._fd = fd

    def append(self, data: bytes) -> None:
        """Write, and wait until the disk has it. Raises OSError; then close the file and go on in another one."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        os.fsync(self._fd)
        self.size_bytes += len(data)

    def close(self) -> None:
        """Close it, without what a failed `append` may have left, so that nothing is in the record twice."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.size_bytes)
        os.close(self._fd)


def list_files(folder: Path) -> list[RecordFile]:
    """The files of the record in a folder, the oldest first. Raises OSError."""
    return sorted(_list(folder), key=lambda file: file.number)


def _list(folder: Path) -> Iterator[RecordFile]:
    for path in folder.iterdir():
        number = read_number(path.name)
        if number is not None and path.is_file():
            status = path.stat()
            yield RecordFile(path, number, status.st_size, status.st_mtime)


def _refuse(path: Path, found: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"SURGSEG_AUDIT is {path}, which {found}.",
        "a folder for this service alone, with room and permission to write",
        "Name another folder, or leave SURGSEG_AUDIT unset to keep no record.",
    )
