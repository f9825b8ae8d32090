"""What libraries write to standard error themselves, as lines of the log: bounded in length and in number.

libjpeg says a line of every damaged picture, and pictures come from strangers. What Python writes goes where it did.
What a library says while it ends the process is lost with it; its exit code is not.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time

from service.access.rates import TokenBucket

_log = logging.getLogger(__name__)
_RATE, _BURST = 1.0, 20.0
_MOST_BYTES = 4096
_STANDARD_ERROR = 2


def log_native_output() -> None:
    """From now on, and in processes that are started later; to be called once, and logging is set up after it."""
    reading, writing = os.pipe()
    real = os.dup(_STANDARD_ERROR)
    os.set_blocking(writing, False)  # a library that says more than is read loses it, and waits for nobody
    os.dup2(writing, _STANDARD_ERROR)
    os.close(writing)
    sys.stderr = io.TextIOWrapper(
        io.FileIO(real, "w"), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    threading.Thread(target=_read_lines, args=(reading,), name="surgseg-native-output", daemon=True).start()


def _read_lines(reading: int) -> None:
    lines = TokenBucket(_RATE, _BURST)
    rest = b""
    while data := os.read(reading, _MOST_BYTES):
        *whole, rest = (rest + data).split(b"\n")
        for line in [*whole, rest] if len(rest) > _MOST_BYTES else whole:
            if line and lines.take(time.monotonic()) == 0.0:
                _log.warning("a library says: %s", line.decode(errors="backslashreplace"))
        rest = b"" if len(rest) > _MOST_BYTES else rest
