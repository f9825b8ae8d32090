"""What a process and all its children use, from /proc: once a second, in a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

_PROC = Path("/proc")
_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Usage:
    """`cpu_s` processor time since each process began, that of ended children included. `memory_bytes` is PSS.

    PSS counts a page that n processes share as one n-th for each, so a sum over processes is right.
    """

    cpu_s: float
    memory_bytes: int
    processes: int


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


def measure_tree(pid: int | None) -> Usage:
    """The process and all below it; nothing where it is gone or None."""
    cpu_s, memory_bytes, processes = 0.0, 0, 0
    for member in () if pid is None else list_tree(pid):
        try:
            cpu_s += _read_cpu_s(member)
            memory_bytes += _read_memory(member)
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
        processes += 1
    return Usage(cpu_s, memory_bytes, processes)


def list_tree(pid: int) -> list[int]:
    """The process and all its descendants that live now."""
    children: dict[int, list[int]] = {}
    for child, parent in _list_parents():
        children.setdefault(parent, []).append(child)
    tree, unseen = [], [pid]
    while unseen:
        member = unseen.pop()
        tree.append(member)
        unseen += children.get(member, [])
    return tree


def find_listener(port: int) -> int | None:
    """The process of this machine that listens on a TCP port; None where none is found or it is not ours to see."""
    sockets = {f"socket:[{inode}]" for inode in _list_listeners(port)}
    for pid in _list_pids() if sockets else ():
        try:
            links = [os.readlink(link) for link in (_PROC / str(pid) / "fd").iterdir()]  # noqa: PTH115 - a socket is no path
        except OSError:
            continue
        if sockets.intersection(links):
            return pid
    return None


def _list_listeners(port: int) -> Iterator[str]:
    """Inodes of the sockets that listen on `port`."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            if parts[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port:
                yield parts[9]


def _list_pids() -> list[int]:
    try:
        return [int(path.name) for path in _PROC.iterdir() if path.name.isdecimal()]
    except OSError:
        return []


def _list_parents() -> Iterator[tuple[int, int]]:
    for pid in _list_pids():
        try:
            yield pid, int(_read_stat(pid)[1])
        except (OSError, IndexError):
            continue


def _read_stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the name before it may hold anything."""
    return (
        (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    )


def _read_cpu_s(pid: int) -> float:
    return sum(int(ticks) for ticks in _read_stat(pid)[11:15]) / os.sysconf("SC_CLK_TCK")


def _read_memory(pid: int) -> int:
    """PSS, or RSS where the kernel does not tell us."""
    try:
        for line in (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    pages = int((_PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
