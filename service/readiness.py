"""`surgseg ready`: the readiness of a running service as an exit code, for a probe that has to show a token.

It imports no more of the client than it needs: a probe that costs a second of processor time would be one of the loads.
"""

from __future__ import annotations

import argparse
import http.client
import json
from urllib.parse import urlsplit

from service.credentials import add_credential_arguments, read_credentials
from service.errors import InvalidRequestError

_DEFAULT_URL = "http://127.0.0.1:8000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `surgseg ready`."""
    parser.add_argument("--url", default=_DEFAULT_URL, help=f"the service ({_DEFAULT_URL})")
    parser.add_argument("--timeout", type=float, default=4.0, metavar="S", help="how long to wait (4)")
    add_credential_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print one line; 0 when the service is ready, 1 when it is not or does not answer. Raises InvalidRequestError."""
    parts = urlsplit(arguments.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequestError(
            f"--url is {arguments.url!r}.", "http://HOST:PORT or https://HOST:PORT", "Change the option."
        )
    credentials = read_credentials(arguments)
    connection = (
        http.client.HTTPSConnection(parts.netloc, timeout=arguments.timeout, context=credentials.verify())
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.netloc, timeout=arguments.timeout)
    )
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/readyz", headers=credentials.headers())
        answer = connection.getresponse()
        body = answer.read(65_536)
    except (OSError, http.client.HTTPException) as error:
        print(f"{arguments.url} does not answer ({error.__class__.__name__}: {error})")
        return 1
    finally:
        connection.close()
    print("ready" if answer.status == 200 else _read_detail(body) or f"HTTP {answer.status}")
    return 0 if answer.status == 200 else 1


def _read_detail(body: bytes) -> str:
    try:
        problem = json.loads(body)
    except ValueError:
        return ""
    return str(problem.get("detail", "")) if isinstance(problem, dict) else ""
