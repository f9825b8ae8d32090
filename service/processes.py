"""What a process and all its children use, from /proc; nothing where there is no /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """`cpu_s` processor time since each process began, that of ended children included. `memory_bytes` is PSS.

    PSS counts a page that n processes share as one n-th for each, so a sum over processes is right.
    """

    cpu_s: float
    memory_bytes: int
    processes: int


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


def list_pids() -> list[int]:
    """Every process of this machine, or of this container."""
    try:
        return [int(path.name) for path in PROC.iterdir() if path.name.isdecimal()]
    except OSError:
        return []


def _list_parents() -> Iterator[tuple[int, int]]:
    for pid in list_pids():
        try:
            yield pid, int(_read_stat(pid)[1])
        except (OSError, IndexError):
            continue


def _read_stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the name before it may hold anything."""
    return (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def _read_cpu_s(pid: int) -> float:
    return sum(int(ticks) for ticks in _read_stat(pid)[11:15]) / os.sysconf("SC_CLK_TCK")


def _read_memory(pid: int) -> int:
    """PSS, or RSS where the kernel does not tell us."""
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    pages = int((PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
