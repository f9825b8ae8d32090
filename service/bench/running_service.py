"""The service under measurement: one that was named, or one started for as long as it takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from urllib.parse import urlsplit

from service.bench.resources import find_listener
from service.errors import UnavailableError

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_READY_LINE = re.compile(r"is ready at (https?://\S+?)/?\s")
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class RunningService:
    """`pid` is None where the service is not a process of this machine that we can see."""

    url: str
    pid: int | None


def attach(url: str) -> RunningService:
    """A service that runs already, by its address (http, https, ws or wss)."""
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    is_local = parts.hostname in _LOCAL and parts.port is not None
    pid = find_listener(parts.port) if is_local and parts.port else None
    return RunningService(f"{scheme}://{parts.netloc}", pid)


@contextmanager
def start_service(
    bundle: Path, backend: str, most_streams: int, settings: Mapping[str, str]
) -> Iterator[RunningService]:
    """Run `surgseg serve` on a free port. Raises UnavailableError when it does not get ready."""
    arguments = ["-m", "service", "serve", "--port", "0", "--bundle", str(bundle), "--backend", backend]
    # it serves this machine alone, so what the service of the same environment asks for would only be in the way
    access = dict.fromkeys(("SURGSEG_TOKENS", "SURGSEG_TLS_CERTIFICATE", "SURGSEG_TLS_KEY"), "")
    environment = {"SURGSEG_MAX_STREAMS": str(max(16, most_streams)), **access, **settings}
    with start_program(arguments, environment) as service:
        yield service


@contextmanager
def start_program(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[RunningService]:
    """Run a Python program that prints "... is ready at http://..." when it is. Raises UnavailableError otherwise."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield RunningService(_wait_until_ready(process), process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[str]) -> str:
    """Read the program's output for as long as it lives; its pipe must never fill up."""
    lines: list[str] = []
    urls: Queue[str | None] = Queue()

    def read() -> None:
        with process.stdout or nullcontext(()) as output:
            for line in output:
                lines.append(line)
                del lines[:-20]
                if found := _READY_LINE.search(line):
                    urls.put(found[1])
        urls.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        url = urls.get(timeout=_START_TIMEOUT_S)
    except Empty:
        url = None
    if url is None:
        last = lines[-1].strip() if lines else "it printed nothing"
        raise UnavailableError(f"The service did not start: {last}", "one that starts", "See its message.")
    return url
