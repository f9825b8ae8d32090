"""Tokens and the lines that keep them: never a token itself, only its hash. Pure.

A line is `NAME SCOPES sha256:HASH [expires=DAY] [LIMIT=NUMBER ...]`, for example
`OR-3 push sha256:9f86... expires=2027-01-31 streams=2`. Empty lines and those that begin with # are left out.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from service.access.scopes import Scope
from service.errors import InvalidRequestError

MAX_TOKENS = 1000
_PREFIX = "surgseg_"
_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one token may do; None is no limit beyond the service's own.

    `requests_per_s`: requests and WebSockets opened. `streams`: WebSockets open at once. `bytes_per_s`: what is read
    from it. `max_bytes`: of one body or message.
    """

    requests_per_s: float | None = None
    streams: int | None = None
    bytes_per_s: int | None = None
    max_bytes: int | None = None


LIMIT_NAMES = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token. `digest` is the SHA-256 of its text, in hex; `expires_on` is its last day, in UTC."""

    name: str
    scopes: frozenset[Scope]
    digest: str
    expires_on: date | None = None
    limits: Limits = Limits()

    def is_valid(self, today: date) -> bool:
        """Whether it has not expired."""
        return self.expires_on is None or today <= self.expires_on

    def line(self) -> str:
        """The line that keeps it."""
        parts = [self.name, ",".join(sorted(self.scopes)), f"sha256:{self.digest}"]
        if self.expires_on is not None:
            parts.append(f"expires={self.expires_on.isoformat()}")
        limits = ((name, getattr(self.limits, name)) for name in LIMIT_NAMES)
        return " ".join([*parts, *(f"{name}={value}" for name, value in limits if value is not None)])


def make_secret() -> str:
    """A new token: 256 random bits, in letters that a header and a WebSocket sub-protocol may hold."""
    return _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """The hash that is kept. Fast on purpose: nobody guesses 256 random bits, however fast he may try."""
    return hashlib.sha256(secret.encode()).hexdigest()


def find_token(tokens: Iterable[Token], secret: str) -> Token | None:
    """The token with that text; as long for any text, as every hash is compared, each in constant time."""
    digest = hash_secret(secret)
    found = None
    for token in tokens:
        if hmac.compare_digest(digest, token.digest):
            found = token
    return found


def parse_tokens(text: str, source: str) -> tuple[Token, ...]:
    """The tokens of a file's text; `source` is its name, for errors.

    Raises InvalidRequestError that names the line and never quotes it: a token may have been put there by mistake.
    """
    tokens: list[Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            tokens.append(_parse_line(words))
        except ValueError as error:
            raise _bad_file(f"Line {number} of {source} {error}.") from None
    for attribute in ("name", "digest"):
        values = [getattr(token, attribute) for token in tokens]
        if len(set(values)) < len(values):
            raise _bad_file(
                f"Two lines of {source} have the same {'hash' if attribute == 'digest' else 'name'}."
            )
    if len(tokens) > MAX_TOKENS:
        raise _bad_file(f"{source} has {len(tokens)} tokens, and {MAX_TOKENS} is the most.")
    return tuple(tokens)


def parse_scopes(text: str) -> frozenset[Scope]:
    """Scopes with commas between them. Raises ValueError."""
    try:
        return frozenset(Scope(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"has a scope that is none of {', '.join(Scope)}") from None


def check_name(name: str) -> str:
    """The name itself. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError("has a name that is not 1 to 64 letters, digits, dots, dashes and underscores")
    return name


def parse_day(text: str) -> date:
    """A day, YYYY-MM-DD. Raises ValueError."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError("has an expiry that is no day such as 2027-01-31") from None


def parse_limit(name: str, text: str) -> float | int:
    """The value of a limit, above 0. Raises ValueError."""
    if not _NUMBER.fullmatch(text) or not float(text):
        raise ValueError(f"has a {name} that is no number above 0")
    value = float(text)
    if name == "requests_per_s":
        return value
    if not value.is_integer():
        raise ValueError(f"has a {name} that is not whole")
    return int(value)


def _parse_line(words: list[str]) -> Token:
    if len(words) < 3:
        raise ValueError(f"has {len(words)} words")
    name, scopes, hashed, *options = words
    found = _HASH.fullmatch(hashed)
    if not found:
        raise ValueError("has no hash in third place")
    values = dict(option.partition("=")[::2] for option in options)
    if len(values) < len(options):
        raise ValueError("says something twice")
    expires = values.pop("expires", None)
    if unknown := [key for key in values if key not in LIMIT_NAMES]:
        raise ValueError(f"has {len(unknown)} options that are not known")
    limits: dict[str, Any] = {key: parse_limit(key, value) for key, value in values.items()}
    return Token(
        check_name(name),
        parse_scopes(scopes),
        found[1],
        None if expires is None else parse_day(expires),
        Limits(**limits),
    )


def _bad_file(found: str) -> InvalidRequestError:
    options = " ".join(f"[{name}=NUMBER]" for name in LIMIT_NAMES)
    return InvalidRequestError(
        found,
        f"lines of the form NAME SCOPES sha256:HASH [expires=YYYY-MM-DD] {options}",
        "Make tokens with `surgseg token new`.",
    )
