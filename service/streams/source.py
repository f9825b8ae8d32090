"""What every source of frames keeps to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from service.frames import FittedFrame


class FrameSource(Protocol):
    """Pictures, decoded and fitted, one after the other. One reader thread iterates; any thread may close."""

    def frames(self) -> Iterator[FittedFrame]:
        """The pictures, in order. Ends with the source or when closed; raises StreamError when it fails."""
        ...

    def close(self) -> None:
        """End `frames` soon, from any thread. Closing twice does nothing."""
        ...
