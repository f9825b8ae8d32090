"""What the service and its client use, once a second, in a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from service.processes import PROC, Usage, list_pids, measure_tree

_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Both sides at one instant, `at` monotonic seconds."""

    at: float
    service: Usage
    client: Usage


class Sampler:
    """Use it as a context manager; `samples` is complete afterwards. A pid of None stands for nothing to look at."""

    def __init__(self, service_pid: int | None, client_pid: int | None) -> None:
        self._service_pid = service_pid
        self._client_pid = client_pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="surgseg-sampler", daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Sampler:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._take()

    def _take(self) -> None:
        service, client = measure_tree(self._service_pid), measure_tree(self._client_pid)
        if self.samples:
            # A child that ends while we look is for a moment in neither its own figures nor its parent's.
            last = self.samples[-1]
            service = replace(service, cpu_s=max(service.cpu_s, last.service.cpu_s))
            client = replace(client, cpu_s=max(client.cpu_s, last.client.cpu_s))
        self.samples.append(Sample(time.monotonic(), service, client))


def find_listener(port: int) -> int | None:
    """The process of this machine that listens on a TCP port; None where none is found or it is not ours to see."""
    sockets = {f"socket:[{inode}]" for inode in _list_listeners(port)}
    for pid in list_pids() if sockets else ():
        try:
            links = [os.readlink(link) for link in (PROC / str(pid) / "fd").iterdir()]  # noqa: PTH115 - a socket is no path
        except OSError:
            continue
        if sockets.intersection(links):
            return pid
    return None


def _list_listeners(port: int) -> Iterator[str]:
    """Inodes of the sockets that listen on `port`."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            if parts[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port:
                yield parts[9]
