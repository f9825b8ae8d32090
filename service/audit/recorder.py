"""The pipeline's journal on a disk: entries are noted in the streams' threads, and written in a thread of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.audit.entries import ClosedEntry, DropEntry, MaskEntry, ModelEntry, OpenedEntry
from service.audit.folder import RecordFolder
from service.audit.intake import Draft, Intake
from service.audit.meter import AuditMeter
from service.audit.scribe import Scribe
from service.audit.shelf import KeepRules
from service.audit.writer import RecordWriter
from service.contract.bundle import Bundle
from service.contract.geometry import crop_mask
from service.contract.masks import to_rle
from service.errors import InvalidRequestError
from service.frames import DropReason, SegmentedFrame
from service.pipeline.engine import BackendInfo
from service.pipeline.journal import Described


class AuditRecorder:
    """Writes down how every frame ended; see `Journal`. Any thread may call any method.

    An entry is on the disk about half a second after its frame ended. Nobody waits for that: what finds no room on the
    way is counted as lost, in the metrics and in the record. While the record cannot be written the streams go on;
    `is_strict` says whether new ones are then refused.

    Raises InvalidRequestError when the record cannot be begun.
    """

    def __init__(
        self,
        folder: Path,
        rules: KeepRules,
        meter: AuditMeter,
        *,
        is_strict: bool,
        clock: Callable[[], float] = time.time,
        intake: Intake | None = None,
    ) -> None:
        self._meter = meter
        self._is_strict = is_strict
        self._clock = clock
        self._intake = intake or Intake()
        writer = _begin_record(RecordFolder(folder), rules, meter, clock)
        self.run = writer.run
        self._scribe = Scribe(writer, self._intake, meter)

    @property
    def refusal(self) -> str | None:
        """See `Journal.refusal`."""
        return self._scribe.failure if self._is_strict else None

    def start(self) -> None:
        """Begin to write what comes."""
        self._scribe.start()

    def stop(self, timeout_s: float) -> bool:
        """Write what has come, and end; False when that took longer than `timeout_s`."""
        return self._scribe.stop(timeout_s)

    def describe_model(self, bundle: Bundle, backend: BackendInfo) -> None:
        """See `Journal.describe_model`."""
        card = bundle.card
        entry = ModelEntry(
            at=self._now(),
            fingerprint=bundle.fingerprint,
            name=card.name,
            version=card.version,
            classes=tuple(card.classes),
            backend=backend.name,
            precision=backend.precision,
            runtime_version=backend.version,
            sha256=bundle.hash_of(backend.precision),
        )
        self._note(lambda: entry)

    def follow(self, stream_id: str) -> StreamNotes:
        """See `Journal.follow`."""
        return StreamNotes(stream_id, self._note, self._now)

    def begin(self, stream: Described) -> None:
        """See `Journal.begin`."""
        entry = OpenedEntry(
            at=self._now(),
            stream=stream.id,
            name=stream.name,
            origin=stream.origin,
            codec=stream.codec,
            mode=stream.mode,
        )
        self._note(lambda: entry)

    def _note(self, draft: Draft, size_bytes: int = 0) -> None:
        if not self._intake.put(draft, size_bytes):
            self._meter.lost.inc()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


class StreamNotes:
    """One stream's part of the record; see `StreamJournal`. `note` takes a draft and the bytes that it holds."""

    def __init__(
        self,
        stream_id: str,
        note: Callable[[Draft, int], None],
        now: Callable[[], datetime],
    ) -> None:
        self._id = stream_id
        self._note = note
        self._now = now

    def segment(self, segmented: SegmentedFrame) -> None:
        """See `StreamJournal.segment`."""
        frame = segmented.frame
        mask_hw = crop_mask(segmented.canvas_mask_hw, frame.fit)
        # what the entry says is taken out here: to keep the frame would be to keep its picture
        facts: dict[str, Any] = {
            "at": self._now(),
            "stream": self._id,
            "sequence": frame.sequence,
            "pts_s": frame.pts_s,
            "captured_at_us": frame.captured_at_us,
            "latency_ms": {
                stage.value: round(seconds * 1000, 3)
                for stage, seconds in frame.timeline.durations_s().items()
            },
            "model": segmented.bundle.fingerprint,
            "width": frame.fit.source_width,
            "height": frame.fit.source_height,
        }
        self._note(lambda: MaskEntry(**facts, mask=to_rle(mask_hw)), segmented.canvas_mask_hw.nbytes)

    def drop(self, sequence: int, reason: DropReason, pts_s: float | None) -> None:
        """See `StreamJournal.drop`."""
        entry = DropEntry(
            at=self._now(), stream=self._id, sequence=sequence, reason=reason.value, pts_s=pts_s
        )
        self._note(lambda: entry, 0)

    def end(self, received: int, segmented: int, dropped: Mapping[DropReason, int]) -> None:
        """See `StreamJournal.end`."""
        entry = ClosedEntry(
            at=self._now(),
            stream=self._id,
            received=received,
            segmented=segmented,
            dropped={reason.value: count for reason, count in dropped.items()},
        )
        self._note(lambda: entry, 0)


def _begin_record(
    folder: RecordFolder, rules: KeepRules, meter: AuditMeter, clock: Callable[[], float]
) -> RecordWriter:
    """Its first block has no entry: it says that the service has started, and that the disk takes what we write."""
    try:
        writer = RecordWriter(folder, rules, clock=clock, on_deleted=meter.count_deleted)
        meter.bytes.inc(writer.write(()))
    except OSError as error:
        folder.close()
        raise InvalidRequestError(
            f"SURGSEG_AUDIT is {folder.path}, which cannot be written to ({error.strerror}).",
            "a folder with room and permission to write",
            "Make room, name another folder, or leave SURGSEG_AUDIT unset to keep no record.",
        ) from error
    return writer
