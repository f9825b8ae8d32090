"""What libraries write to standard error becomes lines of the log, and not too many; Python's own stays as it is."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import os, sys, time
from service.logs import set_up_logging
from service.native_output import log_native_output
log_native_output()
set_up_logging("info", "json")
for number in range(500):
    os.write(2, b"Corrupt JPEG data: \\x1b[31m %d\\n" % number)
os.write(2, b"x" * 100_000 + b"\\n")
os.system("echo of a child >&2")
print("of Python", file=sys.stderr)
time.sleep(0.5)
"""


def test_libraries_cannot_fill_the_log() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stderr.splitlines()
    assert "of Python" in lines
    logged = [json.loads(line) for line in lines if line != "of Python"]
    assert 20 <= len(logged) <= 23
    assert logged[0]["message"] == "a library says: Corrupt JPEG data: \x1b[31m 0"
    assert logged[0]["level"] == "warning"
    assert max(map(len, lines)) < 3000
    assert all(line.isprintable() for line in lines)
