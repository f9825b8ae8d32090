"""The places for open streams: each is a label in the metrics, and there are only so many."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import OverloadedError
from service.pipeline.gatekeeper import Gatekeeper
from service.pipeline.ledger import Ledger
from service.pipeline.processor_costs import Newcomer
from service.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Place:
    """What a stream has before it begins. `label` names its slot, the lowest that was free."""

    stream_id: str
    label: str
    ledger: Ledger


class StreamPlaces:
    """Gives places out and takes them back. Any thread may call any method.

    `on_left(stream_id)` is told when a stream is closed and all its frames are accounted for.
    """

    def __init__(
        self, count: int, telemetry: Telemetry, gatekeeper: Gatekeeper, on_left: Callable[[str], None]
    ) -> None:
        self._telemetry = telemetry
        self._gatekeeper = gatekeeper
        self._on_left = on_left
        self._lock = threading.Lock()
        self._free = set(range(1, count + 1))
        self._numbers = itertools.count(1)

    def take(self, newcomer: Newcomer) -> Place | None:
        """A place; None when all are taken. Raises OverloadedError where the streams that are open would suffer."""
        with self._lock:
            slot = min(self._free, default=None)
            if slot is None:
                return None
            self._free.remove(slot)
        stream_id = f"stream-{next(self._numbers)}"
        try:
            self._gatekeeper.admit(stream_id, newcomer)
        except OverloadedError:
            self._give_back(slot)
            raise
        ledger = Ledger(
            self._telemetry.meter_stream(str(slot)),
            on_settled=lambda: self._leave(stream_id, slot),
            on_received=lambda: self._gatekeeper.receive(stream_id),
        )
        return Place(stream_id, str(slot), ledger)

    def _leave(self, stream_id: str, slot: int) -> None:
        self._gatekeeper.close(stream_id)
        self._on_left(stream_id)
        self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        with self._lock:
            self._free.add(slot)
