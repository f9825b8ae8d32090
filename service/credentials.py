"""What a client of the service shows and whom it trusts: a token, and the authority of the service's certificate."""

from __future__ import annotations

import argparse
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import InvalidRequestError

TOKEN_VARIABLE, AUTHORITY_VARIABLE = "SURGSEG_TOKEN", "SURGSEG_CA"
CLIENT_VARIABLES = (TOKEN_VARIABLE, AUTHORITY_VARIABLE)


@dataclass(frozen=True, slots=True)
class Credentials:
    """`authority` is a PEM file of certificates; None trusts those that this machine trusts."""

    token: str | None = field(default=None, repr=False)
    authority: Path | None = None

    def headers(self) -> dict[str, str]:
        """The headers that show the token. Raises InvalidRequestError for one that no header can hold."""
        if self.token is None:
            return {}
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise InvalidRequestError(
                "The token has characters that no token has.",
                "one word, as `surgseg token new` prints it",
                "Copy it again.",
            )
        return {"Authorization": f"Bearer {self.token}"}

    def verify(self) -> ssl.SSLContext:
        """How the service's certificate is checked. Raises InvalidRequestError where the authority cannot be read."""
        try:
            return ssl.create_default_context(cafile=self.authority)
        except OSError as error:
            raise InvalidRequestError(
                f"The authority {self.authority} cannot be used ({error.strerror or error}).",
                "a PEM file of certificates",
                f"Check --ca, or {AUTHORITY_VARIABLE}.",
            ) from error


def add_credential_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of commands that speak to a service. The token itself is none: others see a command's arguments."""
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"file that holds a token; or set {TOKEN_VARIABLE}"
    )
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help=f"authority of the service's certificate; or set {AUTHORITY_VARIABLE}",
    )


def read_credentials(arguments: argparse.Namespace) -> Credentials:
    """What the options and the environment say; the options win. Raises InvalidRequestError."""
    token = os.environ.get(TOKEN_VARIABLE) or None
    if arguments.token_file is not None:
        token = _read_token(arguments.token_file)
    named = os.environ.get(AUTHORITY_VARIABLE)
    return Credentials(token, arguments.ca or (Path(named) if named else None))


def _read_token(path: Path) -> str:
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_token_file(path, "it cannot be read") from error
    if len(words) != 1:
        raise _bad_token_file(path, f"it has {len(words)} words")
    return words[0]


def _bad_token_file(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"There is no token in {path}: {why}.",
        "a file that holds one token and nothing else",
        "Check --token-file.",
    )
