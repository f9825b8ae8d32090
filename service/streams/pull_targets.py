"""What a pulled stream may be opened from. Pure but for looking up files: no socket is opened here.

A client names an address, and this machine connects to it: whoever may open streams could otherwise have the service
speak to any host and read any file. So only the schemes, hosts and files that the operator allows pass, the address
is put together again from its parts, and its secrets (a camera's password) are in `url` only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from service.errors import ForbiddenError, InvalidRequestError, StreamError

TRANSPORTS = ("tcp", "udp")
_FILE = "file"
_RTSP = ("rtsp", "rtsps")
_SCHEMES = (*_RTSP, "udp")
_SAFE = re.compile(
    r"[!-\[\]-~]*"
)  # printable ASCII without blank and backslash, which parsers read differently
_MOST_CHARACTERS = 2048
_EVERY_ADDRESS = "0.0.0.0"
# what is looked at before the first picture: 2 s at most, and no frames just to learn how many come in a second
_PROBE = {"analyzeduration": "2000000", "fpsprobesize": "0"}
_MOST_DELAY_US = 100_000  # how long packets that come out of order are waited for


@dataclass(frozen=True, slots=True)
class PullTarget:
    """Where a decoder reads from. `url` may hold a password and is for the decoder alone; `shown` is for people."""

    shown: str
    is_file: bool
    url: str = field(repr=False)
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class PullRules:
    """What an operator allows: network schemes, hosts, and the folder whose files may be opened.

    `hosts` are names and addresses as an url may write them, networks such as 10.0.7.0/24, and `*` for any. A name is
    allowed by its name only: what it leads to is whatever the operator's name server says.
    """

    schemes: Collection[str]
    hosts: Collection[str]
    folder: Path | None

    def admit(self, url: str, transport: str) -> PullTarget:
        """Check an address that a stranger names. `transport` is how RTSP brings its packets, tcp or udp.

        Raises InvalidRequestError for what is no such address, ForbiddenError for what is not allowed, and
        StreamError for an allowed file that does not exist.
        """
        if len(url) > _MOST_CHARACTERS or not _SAFE.fullmatch(url):
            raise _not_an_address(
                "The url has blanks, a backslash, other than ASCII, or too many characters."
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _not_an_address("The url cannot be taken apart.") from error
        if parts.scheme == _FILE:
            return self._admit_file(parts)
        if parts.scheme not in _SCHEMES or not (parts.hostname or parts.scheme == "udp"):
            raise _not_an_address(f"The url's scheme is {parts.scheme!r}, or it names no host.")
        self._check(parts)
        if parts.scheme == "udp":
            return _plan_udp(parts, port)
        return _plan_rtsp(parts, port, transport)

    def _check(self, parts: SplitResult) -> None:
        if parts.scheme not in self.schemes:
            raise ForbiddenError(
                f"{parts.scheme} is not allowed here.",
                f"a url that begins with {' or '.join(sorted(self.schemes)) or 'file'}",
                "Let the operator add it to SURGSEG_PULL_SCHEMES.",
            )
        host = parts.hostname or _EVERY_ADDRESS
        if not _is_listed(host, self.hosts):
            raise ForbiddenError(
                f"The host {host!r} is not allowed here.",
                "a host that the operator has listed",
                "Let the operator add it to SURGSEG_PULL_HOSTS.",
            )

    def _admit_file(self, parts: SplitResult) -> PullTarget:
        """A file below the folder: `file:NAME`, or `file:///PATH`. What lies elsewhere is not even looked at."""
        if self.folder is None:
            raise ForbiddenError(
                "Files are not allowed here.", "a network address", "Let the operator set SURGSEG_FILES."
            )
        name = unquote(parts.path)
        if parts.netloc or parts.query or parts.fragment or not name or "\0" in name:
            raise _not_an_address("The url is no address of a file.")
        folder = self.folder.resolve()
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise ForbiddenError(
                "The file is outside of the folder whose files may be opened.",
                "a file in that folder, as file:NAME",
                "Copy it there, or let the operator change SURGSEG_FILES.",
            )
        shown = f"file:{path.relative_to(folder)}"
        try:
            is_file = path.is_file()
        except OSError as error:  # a name that no file system takes
            raise _not_an_address("The url is no address of a file.") from error
        if not is_file:
            raise StreamError(f"There is no file {shown}.", "a video file", "Check its name.")
        return PullTarget(shown=shown, is_file=True, url=str(path), options={})


def _is_listed(host: str, hosts: Collection[str]) -> bool:
    if "*" in hosts or host in hosts:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any("/" in each and address in ipaddress.ip_network(each) for each in hosts)


def _plan_rtsp(parts: SplitResult, port: int | None, transport: str) -> PullTarget:
    if transport not in TRANSPORTS:
        raise InvalidRequestError(
            f"The transport is {transport!r}.", f"one of {', '.join(TRANSPORTS)}", "Leave it out for tcp."
        )
    secure = ",tls" if parts.scheme == "rtsps" else ""
    options = {
        "rtsp_transport": transport,
        "allowed_media_types": "video",
        "protocol_whitelist": f"rtp,tcp,udp{secure}",
        "max_delay": str(_MOST_DELAY_US),
        **_PROBE,
    }
    place = _join_host(parts, port) + parts.path
    secret = parts.netloc.rpartition("@")[0]
    url = (
        f"{parts.scheme}://{secret + '@' if secret else ''}{place}{'?' + parts.query if parts.query else ''}"
    )
    shown = f"{parts.scheme}://{'***@' if secret else ''}{place}{'?***' if parts.query else ''}"
    return PullTarget(shown=shown, is_file=False, url=url, options=options)


def _plan_udp(parts: SplitResult, port: int | None) -> PullTarget:
    """MPEG-TS that is sent to a port of this machine, or to a multicast group."""
    if port is None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _not_an_address("The udp url is not just an address and a port.")
    options = {
        "protocol_whitelist": "udp",
        "overrun_nonfatal": "1",
        **_PROBE,
        **_bind(parts.hostname or ""),
    }
    url = f"udp://{_join_host(parts, port)}"
    return PullTarget(shown=url, is_file=False, url=url, options=options)


def _bind(host: str) -> dict[str, str]:
    """FFmpeg would listen on every address of the machine, whichever of them is named."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return {}
    return {} if address.is_multicast or address.is_unspecified else {"localaddr": host}


def _join_host(parts: SplitResult, port: int | None) -> str:
    host = parts.hostname or ""
    return (f"[{host}]" if ":" in host else host) + ("" if port is None else f":{port}")


def _not_an_address(found: str) -> InvalidRequestError:
    return InvalidRequestError(
        found,
        "rtsp://HOST[:PORT]/PATH, udp://ADDRESS:PORT or file:NAME",
        "Write the address in that form; encode other characters as %XX.",
    )
