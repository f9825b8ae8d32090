"""A good stream beside those of a soak, whose every mask is known beforehand."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from service.client import Client

_FPS = 8.0


class SteadyStream:
    """Pushes the same pictures over and over, mode every, and compares each mask with that of a quiet service."""

    def __init__(self, url: str, token: str, pictures: list[bytes]) -> None:
        self._url, self._token, self._pictures = url, token, pictures
        with Client(url, token=token) as client:
            self._expected = [client.segment(each, size="model").mask_hw for each in pictures]
        self._ends = threading.Event()
        self.pushed = self.answered = self.wrong = 0
        self.failure = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._push_and_check()
        except Exception as error:  # noqa: BLE001 - whatever ends it is the soak's finding
            self.failure = repr(error)

    def _push_and_check(self) -> None:
        with Client(self._url, token=self._token) as client, client.stream(mode="every") as stream:
            while not self._ends.wait(1 / _FPS):
                stream.push(self._pictures[self.pushed % len(self._pictures)], self.pushed + 1)
                self.pushed += 1
                for message in stream.arrived():
                    self._check(message)
            for message in stream.finish():
                self._check(message)

    def _check(self, message: Any) -> None:
        self.answered += 1
        expected_hw = self._expected[(message.captured_at_us - 1) % len(self._pictures)]
        self.wrong += (
            not np.array_equal(message.mask_hw, expected_hw) or message.captured_at_us != self.answered
        )

    def end(self) -> dict[str, Any]:
        """Stop, wait for the last masks, and give the account."""
        self._ends.set()
        self._thread.join(60)
        return {
            "pushed": self.pushed,
            "answered": self.answered,
            "wrong": self.wrong,
            "failure": self.failure,
        }
