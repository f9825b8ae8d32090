"""`python -m tests.soak.spoilt_service NAME[+NAME] serve ...`: the service with faults that fuzzing must find.

broken: a stream that does not exist is answered 500. leaking: each request leaves 40 KB behind. careless: whoever has a
token of any scope may view. talkative: the log has every path, whole and as it came.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from service.__main__ import main
from service.access import doorkeeper
from service.access.scopes import ANY, Scope, scopes_for
from service.api import gate
from service.api.gate import Gate
from service.errors import NotFoundError
from service.pipeline.pipeline import Pipeline

_LEAK_BYTES = 40 * 1024
_kept: list[bytearray] = []


def _break() -> None:
    find = Pipeline.find_stream

    def find_or_fail(pipeline: Pipeline, stream_id: str) -> Any:
        try:
            return find(pipeline, stream_id)
        except NotFoundError:
            raise KeyError(stream_id) from None

    Pipeline.find_stream = find_or_fail  # type: ignore[method-assign]


def _leak() -> None:
    serve = Gate._serve

    async def serve_and_leak(*arguments: Any) -> None:
        _kept.append(bytearray(b"x" * _LEAK_BYTES))
        await serve(*arguments)

    Gate._serve = serve_and_leak  # type: ignore[method-assign]


def _let_in() -> None:
    def scopes_for_all(*arguments: Any) -> frozenset[Scope] | None:
        needed = scopes_for(*arguments)
        return ANY if needed == {Scope.VIEW} else needed

    doorkeeper.scopes_for = scopes_for_all  # type: ignore[assignment]


def _talk() -> None:
    read = gate._read_visit

    def read_and_tell(scope: Any) -> Any:
        print(scope["path"], file=sys.stderr)
        return read(scope)

    gate._read_visit = read_and_tell


SPOILS: dict[str, Callable[[], None]] = {
    "broken": _break,
    "leaking": _leak,
    "careless": _let_in,
    "talkative": _talk,
}


if __name__ == "__main__":
    for name in sys.argv[1].split("+"):
        SPOILS[name]()
    sys.exit(main(sys.argv[2:]))
