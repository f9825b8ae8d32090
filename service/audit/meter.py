"""What the metrics say of the audit record."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.audit.shelf import Cause


class AuditMeter:
    """Counts one recorder. Every series is there from the start, also where no record is kept. Any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.entries = Counter("surgseg_audit_entries", "Entries written and synced.", registry=registry)
        self.lost = Counter(
            "surgseg_audit_lost", "Entries that could not be written in time.", registry=registry
        )
        self.bytes = Counter("surgseg_audit_written_bytes", "Bytes of the record.", registry=registry)
        self.failing = Gauge(
            "surgseg_audit_failing", "1 while the record cannot be written.", registry=registry
        )
        deleted = Counter(
            "surgseg_audit_files_deleted", "Files deleted, by cause.", ["cause"], registry=registry
        )
        self._deleted = {cause: deleted.labels(cause) for cause in Cause}

    def count_deleted(self, cause: Cause) -> None:
        """A file was deleted."""
        self._deleted[cause].inc()
