"""One viewer's mailbox."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from service.contract.masks import MaskFormat
from service.frames import SegmentedFrame
from service.pipeline.latest_frames import Mode


@dataclass(frozen=True, slots=True)
class Answer:
    """A frame and its mask, encoded in the viewer's format."""

    segmented: SegmentedFrame
    payload: bytes


class Subscription:
    """Where the publisher leaves answers for one viewer. Any thread may call any method; nothing ever blocks.

    LATEST: an unread answer gives way to the next, is counted in `skipped` and told to `on_skipped`. EVERY:
    all are kept; their number is bounded because each holds one place of its stream in the waiting room
    until its `let_go` is called, so a viewer who does not read holds back its source, and no other stream.
    `notify` is called, in the publisher's thread, once for each answer put.
    """

    def __init__(
        self,
        mask_format: MaskFormat,
        mode: Mode,
        *,
        notify: Callable[[], None],
        on_skipped: Callable[[], None],
    ) -> None:
        self.mask_format = mask_format
        self.mode = mode
        self.skipped = 0
        self._notify = notify
        self._on_skipped = on_skipped
        self._lock = threading.Lock()
        self._answers: deque[tuple[Answer, Callable[[], None]]] = deque()
        self._is_closed = False

    def __len__(self) -> int:
        """Answers that wait to be taken."""
        return len(self._answers)

    def put(self, answer: Answer, let_go: Callable[[], None]) -> None:
        """Leave an answer. `let_go` is called, in EVERY only, once: when it is taken, or when nobody will take it."""
        with self._lock:
            is_wanted = not self._is_closed
            is_replacing = is_wanted and self.mode is Mode.LATEST and bool(self._answers)
            if is_replacing:
                self._answers.popleft()
                self.skipped += 1
            if is_wanted:
                self._answers.append((answer, let_go))
        if is_replacing:
            self._on_skipped()
        if is_wanted:
            self._notify()
        elif self.mode is Mode.EVERY:
            let_go()

    def take(self) -> Answer | None:
        """The next answer, or None when there is none."""
        with self._lock:
            if not self._answers:
                return None
            answer, let_go = self._answers.popleft()
        if self.mode is Mode.EVERY:
            let_go()
        return answer

    def close(self) -> None:
        """Nobody will take anything any more; twice does nothing."""
        with self._lock:
            self._is_closed = True
            answers = tuple(self._answers)
            self._answers.clear()
        if self.mode is Mode.EVERY:
            for _, let_go in answers:
                let_go()
