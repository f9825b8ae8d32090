"""The places for open streams: each is a label in the metrics, and there are only so many."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import OverloadedError, UnavailableError
from service.pipeline.gatekeeper import Gatekeeper
from service.pipeline.journal import SILENT, Journal
from service.pipeline.ledger import Ledger
from service.pipeline.processor_costs import Newcomer
from service.telemetry import Refusal, Telemetry


@dataclass(frozen=True, slots=True)
class Place:
    """What a stream has before it begins. `label` names its slot, the lowest that was free."""

    stream_id: str
    label: str
    ledger: Ledger


class StreamPlaces:
    """Gives places out and takes them back. Any thread may call any method.

    `on_left(stream_id)` is told when a stream is closed and all its frames are accounted for; `make_room` is called
    when all places are taken, and may give one back.
    """

    def __init__(
        self,
        count: int,
        telemetry: Telemetry,
        gatekeeper: Gatekeeper,
        on_left: Callable[[str], None],
        make_room: Callable[[], None],
        journal: Journal = SILENT,
    ) -> None:
        self._telemetry = telemetry
        self._gatekeeper = gatekeeper
        self._on_left = on_left
        self._make_room = make_room
        self._journal = journal
        self._lock = threading.Lock()
        self._count = count
        self._free = set(range(1, count + 1))
        self._numbers = itertools.count(1)

    def take(self, newcomer: Newcomer) -> Place:
        """A place. Raises UnavailableError when all are taken, OverloadedError where open streams would suffer."""
        slot = self._take_slot()
        if slot is None:
            self._make_room()
            slot = self._take_slot()
        if slot is None:
            self._telemetry.count_refusal(Refusal.MAX_STREAMS)
            raise UnavailableError(
                f"{self._count} streams are open.",
                f"at most {self._count} at once",
                "Close a stream, or raise SURGSEG_MAX_STREAMS.",
            )
        stream_id = f"stream-{next(self._numbers)}"
        try:
            self._gatekeeper.admit(stream_id, newcomer)
        except OverloadedError:
            self._telemetry.count_refusal(Refusal.OVERLOADED)
            self._give_back(slot)
            raise
        ledger = Ledger(
            self._telemetry.meter_stream(str(slot)),
            on_settled=lambda: self._leave(stream_id, slot),
            on_received=lambda: self._gatekeeper.receive(stream_id),
            journal=self._journal.follow(stream_id),
        )
        return Place(stream_id, str(slot), ledger)

    def _take_slot(self) -> int | None:
        with self._lock:
            if not self._free:
                return None
            slot = min(self._free)
            self._free.remove(slot)
            return slot

    def _leave(self, stream_id: str, slot: int) -> None:
        self._gatekeeper.close(stream_id)
        self._on_left(stream_id)
        self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        with self._lock:
            self._free.add(slot)
