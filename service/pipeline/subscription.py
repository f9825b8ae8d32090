"""One viewer's mailbox."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from service.contract.bundle import Bundle
from service.contract.masks import MaskFormat
from service.frames import SegmentedFrame
from service.pipeline.latest_frames import Mode


@dataclass(frozen=True, slots=True)
class Answer:
    """A frame and its mask, encoded in the viewer's format."""

    segmented: SegmentedFrame
    payload: bytes


@dataclass(frozen=True, slots=True)
class ModelChange:
    """What comes after this was made by the model of `bundle`."""

    bundle: Bundle


class Subscription:
    """Where the publisher leaves answers for one viewer. Any thread may call any method; nothing ever blocks.

    `bundle` is the one whose model the first answers are of; a `ModelChange` lies between those of two models.

    LATEST: an unread answer gives way to the next, is counted in `skipped` and told to `on_skipped`. EVERY:
    all are kept; their number is bounded because each holds one place of its stream in the waiting room
    until its `let_go` is called, so a viewer who does not read holds back its source, and no other stream.
    `notify` is called, in the publisher's thread, once for each answer put and each change.
    """

    def __init__(
        self,
        mask_format: MaskFormat,
        mode: Mode,
        bundle: Bundle,
        *,
        notify: Callable[[], None],
        on_skipped: Callable[[], None],
    ) -> None:
        self.mask_format = mask_format
        self.mode = mode
        self.bundle = bundle
        self.skipped = 0
        self._notify = notify
        self._on_skipped = on_skipped
        self._lock = threading.Lock()
        self._items: deque[tuple[Answer, Callable[[], None]] | ModelChange] = deque()
        self._is_closed = False

    def __len__(self) -> int:
        """Answers and changes that wait to be taken."""
        return len(self._items)

    def put(self, answer: Answer, let_go: Callable[[], None]) -> None:
        """Leave an answer. `let_go` is called, in EVERY only, once: when it is taken, or when nobody will take it."""
        with self._lock:
            is_wanted = not self._is_closed
            is_replacing = is_wanted and self.mode is Mode.LATEST and self._throw_away()
            if is_wanted:
                self._items.append((answer, let_go))
        if is_replacing:
            self._on_skipped()
        if is_wanted:
            self._notify()
        elif self.mode is Mode.EVERY:
            let_go()

    def announce(self, bundle: Bundle) -> None:
        """Say, in its place among the answers, that another model makes those that follow."""
        with self._lock:
            is_wanted = not self._is_closed
            if is_wanted:
                if self._items and isinstance(self._items[-1], ModelChange):
                    self._items.pop()  # nobody has seen a mask of that one
                self._items.append(ModelChange(bundle))
        if is_wanted:
            self._notify()

    def take(self) -> Answer | ModelChange | None:
        """The next answer or change, or None when there is none."""
        with self._lock:
            item = self._items.popleft() if self._items else None
        if item is None or isinstance(item, ModelChange):
            return item
        answer, let_go = item
        if self.mode is Mode.EVERY:
            let_go()
        return answer

    def close(self) -> None:
        """Nobody will take anything any more; twice does nothing."""
        with self._lock:
            self._is_closed = True
            left = [item for item in self._items if not isinstance(item, ModelChange)]
            self._items.clear()
        if self.mode is Mode.EVERY:
            for _, let_go in left:
                let_go()

    def _throw_away(self) -> bool:
        """Remove the answer that nobody has read, if there is one; of changes in a row only the last counts."""
        changes = [item for item in self._items if isinstance(item, ModelChange)]
        has_answer = len(changes) < len(self._items)
        self._items = deque(changes[-1:])
        self.skipped += has_answer
        return has_answer
