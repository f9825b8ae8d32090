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
    until `on_taken` is called for it, so a viewer who does not read holds back its sender, and nobody else.
    `notify` is called, in the publisher's thread, once for each answer put.
    """

    def __init__(
        self,
        mask_format: MaskFormat,
        mode: Mode,
        *,
        notify: Callable[[], None],
        on_skipped: Callable[[], None],
        on_taken: Callable[[], None],
    ) -> None:
        self.mask_format = mask_format
        self.mode = mode
        self.skipped = 0
        self._notify = notify
        self._on_skipped = on_skipped
        self._on_taken = on_taken
        self._lock = threading.Lock()
        self._answers: deque[Answer] = deque()

    def __len__(self) -> int:
        """Answers that wait to be taken."""
        return len(self._answers)

    def put(self, answer: Answer) -> None:
        """Leave an answer."""
        with self._lock:
            is_replacing = self.mode is Mode.LATEST and bool(self._answers)
            if is_replacing:
                self._answers.popleft()
                self.skipped += 1
            self._answers.append(answer)
        if is_replacing:
            self._on_skipped()
        self._notify()

    def take(self) -> Answer | None:
        """The next answer, or None when there is none."""
        with self._lock:
            if not self._answers:
                return None
            answer = self._answers.popleft()
        if self.mode is Mode.EVERY:
            self._on_taken()
        return answer
