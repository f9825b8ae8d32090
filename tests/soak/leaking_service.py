"""`python -m tests.soak.leaking_service serve ...`: the service, but every stream that closes leaves 256 KB behind."""

from __future__ import annotations

import sys

from service.__main__ import main
from service.pipeline.pushed_stream import PushedStream

_LEAK_BYTES = 256 * 1024
_kept: list[bytearray] = []
_close = PushedStream.close


def _close_and_leak(stream: PushedStream) -> None:
    _kept.append(bytearray(b"x" * _LEAK_BYTES))
    _close(stream)


if __name__ == "__main__":
    PushedStream.close = _close_and_leak  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
