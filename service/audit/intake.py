"""What waits to be written: bounded, so that a slow disk costs entries, counted, and neither memory nor time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from service.audit.entries import Entry

Draft = Callable[[], Entry]
"""An entry still to be made, in the writer's thread: encoding a mask takes longer than a stream should wait."""


class Intake:
    """A queue of drafts. Any thread may `put`, which never waits; one thread takes."""

    def __init__(self, max_drafts: int = 20_000, max_bytes: int = 64 * 2**20) -> None:
        """`max_bytes` is what the drafts may hold on to, as their givers say."""
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._drafts: deque[tuple[Draft, int]] = deque()
        self._size_bytes = 0
        self._lost = 0
        self._is_closed = False

    def put(self, draft: Draft, size_bytes: int = 0) -> bool:
        """Leave a draft; False, and it is lost, when there is no room."""
        with self._changed:
            is_full = len(self._drafts) >= self._max_drafts or self._size_bytes + size_bytes > self._max_bytes
            if is_full or self._is_closed:
                self._lost += 1
                return False
            self._drafts.append((draft, size_bytes))
            self._size_bytes += size_bytes
            self._changed.notify()
        return True

    def take(self, timeout_s: float) -> Draft | None:
        """The oldest draft; None when none has come in `timeout_s`, or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._drafts or self._is_closed, timeout_s)
            if not self._drafts:
                return None
            draft, size_bytes = self._drafts.popleft()
            self._size_bytes -= size_bytes
            return draft

    def take_lost(self) -> int:
        """How many were lost since this was last asked."""
        with self._changed:
            lost, self._lost = self._lost, 0
            return lost

    def close(self) -> None:
        """Nothing more comes; what waits can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_over(self) -> bool:
        """Whether it is closed and empty."""
        with self._changed:
            return self._is_closed and not self._drafts
