"""A stream's change of replica while the one that leaves still serves it: what the threads of a MaskStream agree on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.errors import InvalidPictureError
from service.route import Opened
from service.streams.access_units import KeyGate
from service.wire import VIDEO_CODECS

_USUAL_LIMIT_S = 5.0


@dataclass(slots=True, kw_only=True)
class Handover:
    """Begun by a `leaving` event. Its owner holds the stream's lock to read or change it.

    `opened` is the connection that follows, once there is one; from `has_switched` on frames are pushed to it. Nothing
    of it is read until the connection that leaves has ended, so masks stay in order.
    """

    reason: str
    ends_at: float
    began_at: float = field(default_factory=time.monotonic)
    opened: Opened | None = None
    has_switched: bool = False

    @classmethod
    def begin(cls, event: Mapping[str, Any]) -> Handover:
        """What the service said; it serves the stream for `timeout_s` more."""
        limit_s = event.get("timeout_s")
        if not isinstance(limit_s, int | float) or not 0 <= limit_s <= 3600:
            limit_s = _USUAL_LIMIT_S
        return cls(reason=str(event.get("reason", "")), ends_at=time.monotonic() + limit_s)


class Beginnings:
    """Where the frames of one codec can begin at another connection: each picture, of a bitstream the key frames.

    The next service has seen no parameter sets. Where they do not come with the key frame, those before it are sent.
    """

    def __init__(self, codec: str) -> None:
        self._gate = KeyGate(codec) if codec in VIDEO_CODECS else None

    @property
    def are_everywhere(self) -> bool:
        """Whether every frame can begin."""
        return self._gate is None

    def seek(self) -> None:
        """The next key frame is to begin at another connection."""
        if self._gate is not None:
            self._gate.close()

    def look_at(self, payload: bytes) -> tuple[bytes, bool]:
        """A frame as it is to be sent, and whether it can begin."""
        if self._gate is None:
            return payload, True
        try:
            admitted = self._gate.admit(payload)
        except InvalidPictureError:  # the service says so where it belongs, among the answers
            admitted = None
        return (payload, False) if admitted is None else admitted
