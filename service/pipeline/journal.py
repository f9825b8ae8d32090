"""Who is told how every single frame ended, besides the counts: the seam between the pipeline and an audit record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from service.contract.bundle import Bundle
from service.frames import DropReason, SegmentedFrame
from service.pipeline.engine import BackendInfo


class Described(Protocol):
    """What a journal says of a stream; a LiveStream is one."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def codec(self) -> str: ...
    @property
    def mode(self) -> str: ...


class StreamJournal(Protocol):
    """Follows one stream. Called by whichever thread ends a frame; must not block."""

    def segment(self, segmented: SegmentedFrame) -> None:
        """A frame has its mask, and its timeline all its marks."""
        ...

    def drop(self, sequence: int, reason: DropReason, pts_s: float | None) -> None:
        """A frame gives no mask."""
        ...

    def end(self, received: int, segmented: int, dropped: Mapping[DropReason, int]) -> None:
        """The stream is closed and every frame of it accounted for; nothing is told of it any more."""
        ...


class Journal(Protocol):
    """Follows all streams. Any thread may call any method; none may block."""

    @property
    def refusal(self) -> str | None:
        """Why no new work may be taken because of the journal; None while it may."""
        ...

    def describe_model(self, bundle: Bundle, backend: BackendInfo) -> None:
        """A model that gives masks from here on; each says by its bundle which one made it."""
        ...

    def follow(self, stream_id: str) -> StreamJournal:
        """The journal of a stream that is about to open; of posted pictures, all of which are one."""
        ...

    def begin(self, stream: Described) -> None:
        """A stream has opened."""
        ...


class _Silent:
    """Writes nothing down."""

    refusal: str | None = None

    def describe_model(self, bundle: Bundle, backend: BackendInfo) -> None:
        pass

    def follow(self, stream_id: str) -> StreamJournal:
        return self

    def begin(self, stream: Described) -> None:
        pass

    def segment(self, segmented: SegmentedFrame) -> None:
        pass

    def drop(self, sequence: int, reason: DropReason, pts_s: float | None) -> None:
        pass

    def end(self, received: int, segmented: int, dropped: Mapping[DropReason, int]) -> None:
        pass


SILENT = _Silent()
"""The journal of a service that keeps no record."""
