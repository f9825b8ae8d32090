"""From which web pages a browser may use this service. Pure."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from service.errors import ForbiddenError


def check_origin(
    origin: str, host: str, *, is_encrypted: bool, is_private: bool, allowed: Collection[str]
) -> None:
    """Raise ForbiddenError unless a page of `origin` may write to the service, or open a WebSocket.

    `origin` and `host` are the request's headers. A page of the service's own may, and those of the origins in
    `allowed`. `is_encrypted`: the connection is TLS, so a page of the service's own is too. `is_private`: nobody but
    this machine is served, and without tokens; the page must then be at a name of this machine, because any name
    can be made to lead here.
    """
    origin = origin.lower()
    if origin in allowed:
        return
    try:
        page = urlsplit(origin)
        is_own = page.netloc == host.lower() != "" and page.scheme in ("http", "https")
        if is_private:
            is_own = is_own and is_loopback(page.hostname or "")
    except ValueError:
        is_own = False
    if not is_own or (is_encrypted and page.scheme != "https"):
        raise ForbiddenError(
            f"The request comes from a page of {origin[:200]!r}.",
            "a page of this service itself, or of an origin that its operator allows",
            "Name the page's origin in SURGSEG_ORIGINS.",
        )


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine to itself, and to nobody else."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
