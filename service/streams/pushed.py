"""Pictures that a client pushes, as a source of frames."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.contract.geometry import FitRule
from service.contract.model_card import InputSize
from service.errors import InvalidPictureError, PayloadTooLargeError, SurgsegError
from service.frames import FittedFrame
from service.streams.pictures import decode_fitted

LOSSLESS_PUSHES = 4
"""What a lossless stream may push before `on_room` is called. With one alone the decoder would idle until it has been
told of the next."""


@dataclass(frozen=True, slots=True)
class PushedPicture:
    """An encoded picture as it came: `arrived_at` monotonic seconds, `captured_at_us` the sender's clock."""

    sequence: int
    captured_at_us: int
    arrived_at: float
    data: bytes


class PushedPictures:
    """Where pictures wait between the network and the decoder.

    `is_lossless` says what becomes of a picture that finds another one waiting: False, the newer one takes
    its place, so that a stream that comes faster than it can be decoded stays live; True, up to `LOSSLESS_PUSHES`
    wait, `push` refuses more, and the caller must wait for `on_room`. Pictures that cannot be decoded go to
    `on_undecodable`, and the stream goes on. Both callbacks are called in the reader's thread. `push` and `close`
    may be called from any thread.
    """

    def __init__(
        self,
        *,
        codec: str,
        input_size: InputSize,
        fit_rule: FitRule,
        max_pixels: int,
        is_lossless: bool,
        on_undecodable: Callable[[PushedPicture, SurgsegError], None],
        on_room: Callable[[], None],
    ) -> None:
        self._codec = codec
        self._input_size = input_size
        self._fit_rule: FitRule = fit_rule
        self._max_pixels = max_pixels
        self._is_lossless = is_lossless
        self._on_undecodable = on_undecodable
        self._on_room = on_room
        self._changed = threading.Condition()
        self._waiting: deque[PushedPicture] = deque()
        self._is_closed = False

    def push(self, picture: PushedPicture) -> PushedPicture | None:
        """Hand a picture over; gives the one that will not be decoded for it, which may be this one.

        Raises BufferError when the stream is lossless and has no room.
        """
        with self._changed:
            if self._is_closed:
                return picture
            if self._is_lossless and len(self._waiting) >= LOSSLESS_PUSHES:
                raise BufferError("pictures are waiting, and this stream may not lose them")
            superseded = self._waiting.popleft() if self._waiting and not self._is_lossless else None
            self._waiting.append(picture)
            self._changed.notify()
        return superseded

    def frames(self) -> Iterator[FittedFrame]:
        """See `FrameSource.frames`."""
        while (picture := self._wait()) is not None:
            if self._is_lossless:
                self._on_room()
            try:
                canvas_hwc, fit, decoded_at = decode_fitted(
                    picture.data,
                    self._input_size,
                    self._fit_rule,
                    max_pixels=self._max_pixels,
                    codec=self._codec,
                )
            except (InvalidPictureError, PayloadTooLargeError) as error:
                self._on_undecodable(picture, error)
                continue
            yield FittedFrame(
                canvas_hwc=canvas_hwc,
                fit=fit,
                pts_s=None,
                sequence=picture.sequence,
                captured_at_us=picture.captured_at_us,
                arrived_at=picture.arrived_at,
                decoded_at=decoded_at,
                prepared_at=time.monotonic(),
            )

    def close(self) -> None:
        """See `FrameSource.close`. A picture that waits stays for `unread`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def unread(self) -> tuple[PushedPicture, ...]:
        """Take out the pictures that nobody will decode any more; call it after `close`."""
        with self._changed:
            pictures = tuple(self._waiting)
            self._waiting.clear()
        return pictures

    def _wait(self) -> PushedPicture | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return None if self._is_closed else self._waiting.popleft()
