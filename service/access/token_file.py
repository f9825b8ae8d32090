"""The file of tokens: read by the service, again whenever it changes, and written by `surgseg token`."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.access.tokens import Token, parse_tokens
from service.errors import InvalidRequestError

_log = logging.getLogger(__name__)
_MAX_BYTES = 1 << 20
_Signature = tuple[int, int, int]


class TokenFile:
    """A file of tokens and whether it has changed. A replaced link, as Kubernetes mounts secrets, is a change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signature: _Signature | None = None

    def read(self) -> tuple[Token, ...]:
        """The tokens. Raises InvalidRequestError where it cannot be read or a line of it is wrong."""
        self._signature = self._sign()
        return read_tokens(self.path)

    def read_changed(self) -> tuple[Token, ...] | None:
        """As `read`; None where the file is the one that was read last, be it right or wrong."""
        return None if self._sign() == self._signature else self.read()

    def _sign(self) -> _Signature | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file. Raises InvalidRequestError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
            mode = os.fstat(file.fileno()).st_mode
        text = data.decode()
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not text") from None
    if len(data) > _MAX_BYTES:
        raise _unreadable(path, f"it has more than {_MAX_BYTES} bytes")
    if mode & stat.S_IWOTH:
        _log.warning(
            "%s can be written by everybody on this machine: whoever writes to it has every scope", path
        )
    return parse_tokens(text, str(path))


def add_token(path: Path, token: Token) -> None:
    """Add a line, in a file that only its owner may read if it is new. Raises InvalidRequestError for a name twice."""
    with _rewriting(path) as lines:
        if token.name in {known.name for known in parse_tokens("\n".join(lines), str(path))}:
            raise InvalidRequestError(
                f"{path} has a token of the name {token.name} already.",
                "a name of its own for each token",
                "Choose another name such as one with the month; revoke the old one when nobody uses it any more.",
            )
        lines.append(token.line())


def remove_token(path: Path, name: str) -> None:
    """Take a line out; comments stay. Raises InvalidRequestError where there is none of that name."""
    with _rewriting(path) as lines:
        kept = [line for line in lines if line.split()[:1] != [name]]
        if len(kept) == len(lines):
            raise InvalidRequestError(
                f"{path} has no token of the name {name}.", "one of those in it", "See `surgseg token list`."
            )
        lines[:] = kept


@contextmanager
def _rewriting(path: Path) -> Iterator[list[str]]:
    """The file's lines, to be changed; written as a whole, so that no reader sees half of them, and one at a time."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        yield lines
        _write(path, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not text") from None
    finally:
        os.close(folder)


def _write(path: Path, text: str) -> None:
    """Replace the file with one of the same owner and mode."""
    path = path.resolve()
    before = path.stat() if path.exists() else None
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            if before is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _unreadable(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The file of tokens {path} cannot be used ({why}).",
        "a text file with a line for each token",
        "Make one with `surgseg token new`, and name it in SURGSEG_TOKENS.",
    )
