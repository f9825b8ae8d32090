"""What a record comes to: frames, drops, models and latencies of each stream."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from service.audit.entries import ClosedEntry, DropEntry, Entry, MaskEntry, ModelEntry, OpenedEntry


@dataclass(slots=True)
class StreamSummary:
    """One stream of one run; posted pictures are one too, which never opens. Times are milliseconds."""

    run: str
    stream: str
    opened: OpenedEntry | None = None
    closed: ClosedEntry | None = None
    began_at: datetime | None = None
    ended_at: datetime | None = None
    masks: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    stages_ms: dict[str, array[float]] = field(default_factory=dict)
    total_ms: array[float] = field(default_factory=lambda: array("f"))
    first: int = 0
    last: int = 0

    @property
    def key(self) -> str:
        """A name that no other stream of the record has."""
        return f"{self.run}/{self.stream}"

    @property
    def missing(self) -> int:
        """Frames between the first and the last of which the record does not say how they ended."""
        spanned = self.last - self.first + 1 if self.first else 0
        return max(0, spanned - self.masks - sum(self.dropped.values()))

    def add(self, entry: OpenedEntry | MaskEntry | DropEntry | ClosedEntry) -> None:
        """Count an entry of this stream."""
        self.began_at = entry.at if self.began_at is None else min(self.began_at, entry.at)
        self.ended_at = entry.at if self.ended_at is None else max(self.ended_at, entry.at)
        if isinstance(entry, OpenedEntry):
            self.opened = entry
        elif isinstance(entry, ClosedEntry):
            self.closed = entry
        else:
            self._add_frame(entry)

    def _add_frame(self, entry: MaskEntry | DropEntry) -> None:
        self.first = min(self.first or entry.sequence, entry.sequence)
        self.last = max(self.last, entry.sequence)
        if isinstance(entry, DropEntry):
            self.dropped[entry.reason] += 1
            return
        self.masks += 1
        self.models[entry.model] += 1
        self.total_ms.append(sum(entry.latency_ms.values()))
        for stage, duration_ms in entry.latency_ms.items():
            self.stages_ms.setdefault(stage, array("f")).append(duration_ms)


@dataclass(slots=True)
class Summary:
    """All streams of a record, in the order in which they began, and the models by their fingerprints."""

    streams: dict[str, StreamSummary] = field(default_factory=dict)
    models: dict[str, ModelEntry] = field(default_factory=dict)

    def add(self, run: str, entry: Entry) -> None:
        """Count an entry."""
        if isinstance(entry, ModelEntry):
            self.models[entry.fingerprint] = entry
            return
        made = StreamSummary(run, entry.stream)
        self.streams.setdefault(made.key, made).add(entry)

    def find(self, name: str | None) -> Iterator[StreamSummary]:
        """The streams of that id, or RUN/ID; all when the name is None."""
        for key, stream in self.streams.items():
            if name in (None, key, stream.stream):
                yield stream

    def name_model(self, fingerprint: str) -> str:
        """A model's name and version, with as much of its fingerprint as tells it from others."""
        model = self.models.get(fingerprint)
        named = f"{model.name} {model.version}, {model.backend}, {model.precision}" if model else "a model"
        return f"{named} ({fingerprint[:12]})"
