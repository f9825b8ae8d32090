"""What the allocator keeps, in processes of their own: the tests' own allocator stays as it is."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")

BEGIN = """
import ctypes, sys, threading
from pathlib import Path
from service.allocator import limit_arenas, return_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
"""
ARENAS = """
if sys.argv[1] == "limited":
    limit_arenas(1)
gate = threading.Barrier(12)
def work():
    gate.wait()
    libc.malloc(5000)
    gate.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
for each in threads: each.start()
for each in threads: each.join()
libc.fopen.argtypes, libc.malloc_info.argtypes = [ctypes.c_char_p] * 2, [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, file)
libc.fclose(file)
"""
RETURN = """
def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
blocks = [libc.malloc(60_000) for _ in range(2000)]
for each in blocks: ctypes.memset(each, 1, 60_000)
for each in blocks[:-1]: libc.free(each)
kept = resident_mb()
return_memory()
print(kept - resident_mb())
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", BEGIN + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_threads_share_few_arenas() -> None:
    assert run(ARENAS, "limited").count("<heap") <= 2 < run(ARENAS, "as it is").count("<heap")


def test_what_is_free_is_given_back() -> None:
    assert int(run(RETURN)) > 50
