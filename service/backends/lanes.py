"""One function called for several arguments at once, each on a core of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Lanes(Generic[Argument, Result]):
    """The calling thread and one helper for each further lane; they call `work` side by side.

    `cores` are the processors of the helpers' lanes; none binds nobody. The helpers are daemon threads: work that
    hangs must not keep the process alive.
    """

    def __init__(self, work: Callable[[Argument], Result], lanes: int, cores: Sequence[int] = ()) -> None:
        self._work = work
        self._tasks: list[SimpleQueue[Sequence[Argument] | None]] = [SimpleQueue() for _ in range(lanes - 1)]
        self._done: list[SimpleQueue[list[Result] | BaseException]] = [SimpleQueue() for _ in self._tasks]
        for lane in range(lanes - 1):
            core = cores[lane] if cores else None
            threading.Thread(
                target=self._help, args=(lane, core), name=f"lane-{lane + 2}", daemon=True
            ).start()

    def map(self, arguments: Sequence[Argument]) -> list[Result]:
        """The result for each argument, in their order; lane i takes every argument that follows in steps of the lanes.

        Raises what `work` raised, once every lane has ended.
        """
        lanes = len(self._tasks) + 1
        for lane, tasks in enumerate(self._tasks):
            tasks.put(arguments[lane + 1 :: lanes])
        outcomes = [self._call(arguments[::lanes]), *(done.get() for done in self._done)]
        results: list[Result | None] = [None] * len(arguments)
        for lane, outcome in enumerate(outcomes):
            if isinstance(outcome, BaseException):
                raise outcome
            results[lane::lanes] = outcome
        return results  # type: ignore[return-value]

    def close(self) -> None:
        """Send the helpers home."""
        for tasks in self._tasks:
            tasks.put(None)

    def _help(self, lane: int, core: int | None) -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        while (arguments := self._tasks[lane].get()) is not None:
            self._done[lane].put(self._call(arguments))

    def _call(self, arguments: Sequence[Argument]) -> list[Result] | BaseException:
        try:
            return [self._work(argument) for argument in arguments]
        except BaseException as error:  # noqa: BLE001 - whatever it was, the caller must be told
            return error
