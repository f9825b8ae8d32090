"""Threads that cannot die unseen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Worker:
    """A daemon thread that runs `work` once and tells `on_failure` of any exception that leaves it.

    `on_failure` is called in the dying thread. Daemon: a runtime that hangs must not keep the process alive.
    """

    def __init__(
        self, name: str, work: Callable[[], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        self.name = name
        self._work = work
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; False when it has not come in time. In the worker itself it does not wait."""
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - whatever it was, someone must be told
            _log.debug("%s died", self.name, exc_info=True)
            self._on_failure(error)
