"""The thread that writes the record: a block about twice a second, and again until the disk takes it."""

from __future__ import annotations

import logging
import threading
import time

from service.audit.entries import Entry
from service.audit.intake import Intake
from service.audit.meter import AuditMeter
from service.audit.writer import RecordWriter
from service.pipeline.workers import Worker

_log = logging.getLogger(__name__)
_BLOCK_S = 0.5  # what a kill may cost
_RETRY_S = 1.0
_MOST_PENDING = 5000


class Scribe:
    """Makes entries of drafts and hands them to `writer`. Any thread may call any method.

    What cannot be written is kept, as far as there is room, and tried again. `failure` says why nothing can be written
    now; None while all is well.
    """

    def __init__(self, writer: RecordWriter, intake: Intake, meter: AuditMeter) -> None:
        self.failure: str | None = None
        self._writer = writer
        self._intake = intake
        self._meter = meter
        self._pending: list[Entry] = []
        self._lost = 0
        self._stopping = threading.Event()
        self._worker = Worker("surgseg-audit", self._work, self._die)

    def start(self) -> None:
        """Begin to write what comes."""
        self._worker.start()

    def stop(self, timeout_s: float) -> bool:
        """Write what has come, and end; False when that took longer than `timeout_s`."""
        self._intake.close()
        self._stopping.set()
        return self._worker.join(timeout_s)

    def _work(self) -> None:
        while not self._intake.is_over or self._pending:
            self._gather()
            self._flush()
        self._writer.close()

    def _gather(self) -> None:
        """Take what comes until the next block is due. Masks are encoded as they come: a burst would hold up others."""
        due_at = time.monotonic() + _BLOCK_S
        while len(self._pending) < _MOST_PENDING and (wait_s := due_at - time.monotonic()) > 0:
            draft = self._intake.take(wait_s)
            if draft is None:
                return
            self._pending.append(draft())

    def _flush(self) -> None:
        self._lost += self._intake.take_lost()
        try:
            if self._pending or self._lost:
                self._meter.bytes.inc(self._writer.write(self._pending, self._lost))
            else:
                self._writer.tidy()
        except OSError as error:
            self._fail(error)
            if self._stopping.wait(_RETRY_S):
                self._give_up()
            return
        self._meter.entries.inc(len(self._pending))
        self._pending.clear()
        self._mend()

    def _fail(self, error: OSError) -> None:
        reason = f"The audit record cannot be written ({error.strerror})."
        if reason != self.failure:
            _log.error("%s It is tried again every %g s.", reason, _RETRY_S)
        self.failure = reason
        self._meter.failing.set(1)

    def _mend(self) -> None:
        if self.failure is not None:
            _log.warning("The audit record is written again; %d entries were lost.", self._lost)
        self._lost = 0
        self.failure = None
        self._meter.failing.set(0)

    def _give_up(self) -> None:
        """The service ends, and the disk still takes nothing."""
        lost = self._forget() + self._lost
        _log.error("%s The last %d entries are lost.", self.failure, lost)

    def _die(self, error: BaseException) -> None:
        self.failure = f"The audit record has failed ({error.__class__.__name__}: {error})."
        _log.critical("%s Nothing more is recorded until the service is started again.", self.failure)
        self._meter.failing.set(1)
        self._intake.close()
        self._forget()

    def _forget(self) -> int:
        """Count what waits as lost."""
        lost = len(self._pending)
        while self._intake.take(0) is not None:
            lost += 1
        self._pending.clear()
        self._meter.lost.inc(lost)
        return lost
