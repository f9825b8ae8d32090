"""The processors that this process may use."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def available_cores() -> int:
    """Physical cores this process may use: its affinity, hyperthreads counted once, and its CPU quota."""
    return max(1, min(len(list_cores()), _cpu_quota()))


def list_cores() -> list[int]:
    """The first logical processor, counted from 0, of each physical core that this process may use."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    first: dict[str, int] = {}
    for cpu in sorted(allowed):
        first.setdefault(_siblings_of(cpu), cpu)
    return list(first.values())


def run_idle(work: Callable[[], None]) -> None:
    """Do work in a thread that gives way to all others, where the system has such; blocks, and raises what it raises.

    A thread cannot take that back without privileges, so it is one of its own; threads that it starts are as it is.
    """

    def run() -> None:
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        work()

    with ThreadPoolExecutor(1, "surgseg-idle") as thread:
        thread.submit(run).result()


def computes_int8() -> bool:
    """Whether the processor multiplies bytes and adds them up in one instruction, without which int8 is no gain.

    On x86 the instructions without VNNI also saturate: they give other sums, and with them other labels.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine() in ("aarch64", "arm64")
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _siblings_of(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(
            encoding="ascii"
        )
    except OSError:
        return str(cpu)


def _cpu_quota() -> int:
    """Whole cores of the container's CPU quota (cgroup v2); as many as there are where it has none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return os.cpu_count() or 1
