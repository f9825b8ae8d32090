"""`surgseg token`: makes, lists and revokes tokens in the file that SURGSEG_TOKENS names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from service.access.token_file import add_token, read_tokens, remove_token
from service.access.tokens import (
    LIMIT_NAMES,
    Limits,
    Token,
    check_name,
    hash_secret,
    make_secret,
    parse_day,
    parse_limit,
    parse_scopes,
)
from service.errors import InvalidRequestError

_Value = TypeVar("_Value")
_VARIABLE = "SURGSEG_TOKENS"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `surgseg token`."""
    parser.add_argument("action", choices=("new", "list", "revoke"), help="what to do")
    parser.add_argument("--file", type=Path, metavar="FILE", help=f"the file of tokens; or set {_VARIABLE}")
    parser.add_argument("--name", help="whose token it is, such as OR-3; the log names it")
    parser.add_argument("--scope", help="push, view, operate, or several with commas between them")
    parser.add_argument("--expires", metavar="YYYY-MM-DD", help="the last day on which it is valid, in UTC")
    for name, what in zip(
        LIMIT_NAMES,
        ("requests a second", "WebSockets at once", "bytes a second", "bytes of one body or message"),
        strict=True,
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=f"limit: {what}")


def run(arguments: argparse.Namespace) -> int:
    """Do it. Raises InvalidRequestError."""
    named = os.environ.get(_VARIABLE)
    path = arguments.file or (Path(named) if named else None)
    if path is None:
        raise InvalidRequestError(
            "No file of tokens is named.", f"--file FILE, or {_VARIABLE} in the environment", "Name one."
        )
    if arguments.action == "list":
        _list(path)
    elif arguments.action == "revoke":
        remove_token(path, _need(arguments, "name"))
    else:
        _make(path, arguments)
    return 0


def _make(path: Path, arguments: argparse.Namespace) -> None:
    """Print a new token, once the line of its hash is in the file; nothing else ever holds the token."""
    secret = make_secret()
    token = Token(
        _read("name", check_name, _need(arguments, "name")),
        _read("scope", parse_scopes, _need(arguments, "scope")),
        hash_secret(secret),
        None if arguments.expires is None else _read("expires", parse_day, arguments.expires),
        _read_limits(arguments),
    )
    add_token(path, token)
    print(secret)


def _read_limits(arguments: argparse.Namespace) -> Limits:
    values: dict[str, Any] = {}
    for name in LIMIT_NAMES:
        text = getattr(arguments, name)
        if text is not None:
            values[name] = _read(name, partial(parse_limit, name), text)
    return Limits(**values)


def _list(path: Path) -> None:
    today = datetime.now(UTC).date()
    for token in read_tokens(path):
        line = token.line().replace(token.digest, token.digest[:8])
        print(line if token.is_valid(today) else f"{line} (expired)")


def _need(arguments: argparse.Namespace, name: str) -> str:
    value = getattr(arguments, name)
    if not value:
        raise InvalidRequestError(
            f"`surgseg token {arguments.action}` has no --{name}.", f"--{name}", "Add it; see --help."
        )
    return str(value)


def _read(option: str, parse: Callable[[str], _Value], text: str) -> _Value:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"--{option.replace('_', '-')}: {text!r} {error}.", "a value that the option takes", "See --help."
        ) from error
