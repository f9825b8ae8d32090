#!/usr/bin/python3 -IS
"""surgseg-probe ready | idle: what a health check and a stop hook ask the service in their own container.

`ready` gives 0 when /readyz says that a recent inference has succeeded, else 1. `idle` waits until no stream is open
and gives 0, or 1 when the service does not answer or the time is over. It needs Python alone: no curl, no library.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import ssl
import sys
import time
from pathlib import Path

TOKEN = Path("/run/secrets/surgseg/view-token")
_TIMEOUT_S = 4.0
_PAUSE_S = 2.0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    parser = argparse.ArgumentParser(prog="surgseg-probe", description="Ask the service in this container.")
    parser.add_argument(
        "--token", type=Path, default=TOKEN, help="file with a token of scope view (%(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ready", help="0 if it serves masks, else 1")
    idle = commands.add_parser("idle", help="wait until no stream is open")
    idle.add_argument("--least-s", type=float, default=5.0, help="wait at least so long (%(default)s)")
    idle.add_argument("--most-s", type=float, default=3600.0, help="wait at most so long (%(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "ready":
            return _report_readiness(chosen.token)
        return _wait_until_idle(chosen.token, chosen.least_s, chosen.most_s)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"The service does not answer: {error}.", file=sys.stderr)
        return 1


def _report_readiness(token: Path) -> int:
    status, body = _get("/readyz", token)
    if status != 200:
        print(_describe(status, body, token), file=sys.stderr)
    return 0 if status == 200 else 1


def _wait_until_idle(token: Path, least_s: float, most_s: float) -> int:
    """A new stream may still come in at first: that this container stops is not known everywhere at once."""
    started_at = time.monotonic()
    time.sleep(min(least_s, most_s))
    while True:
        status, body = _get("/metrics", token)
        if status != 200:
            print(_describe(status, body, token), file=sys.stderr)
            return 1
        streams = _count_streams(body)
        if streams == 0:
            return 0
        if time.monotonic() - started_at + _PAUSE_S > most_s:
            print(f"{streams} streams are still open after {most_s:g} s.", file=sys.stderr)
            return 1
        time.sleep(_PAUSE_S)


def _count_streams(metrics: str) -> int:
    found = re.search(r"^surgseg_streams (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise ValueError("its metrics have no surgseg_streams")
    return int(float(found.group(1)))


def _get(path: str, token: Path) -> tuple[int, str]:
    """The status and the body of an answer. Raises OSError, HTTPException or ValueError where there is none."""
    port = int(os.environ.get("SURGSEG_PORT", "8000"))
    headers = {"Authorization": f"Bearer {token.read_text('ascii').strip()}"} if token.exists() else {}
    connection: http.client.HTTPConnection
    if os.environ.get("SURGSEG_TLS_CERTIFICATE"):
        # The certificate is for another name than 127.0.0.1, and nobody else can answer there.
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=_TIMEOUT_S, context=ssl._create_unverified_context()
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def _describe(status: int, body: str, token: Path) -> str:
    if status in (401, 403):
        return f"The service answers {status}: put a token with the scope view into {token}."
    return f"The service answers {status}: {body[:500]}"


if __name__ == "__main__":
    sys.exit(main())
