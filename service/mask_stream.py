"""The client's end of `/v1/stream`: frames are pushed, masks are received."""

from __future__ import annotations

import time
from collections.abc import Iterator

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from service.contract.geometry import Image
from service.errors import InvalidRequestError, StreamError
from service.mask_receiver import MaskMessage
from service.moving_receiver import MovingReceiver, say_end
from service.wire import PushedFrame, encode_picture, pack_frame

_QUIET_S = 2.0  # a live stream's last frames may be dropped: so long we wait for an answer to them
_WINDOW = 16  # frames of mode `every` on their way at once: enough to keep a far service busy


class MaskStream(MovingReceiver):
    """An open stream. One thread may push while another reads; a third thread, its own, receives.

    Unread answers are bounded by `capacity`. In mode `latest` the oldest gives way and is counted in
    `unread`; in mode `every` none may be lost, so `push` waits while too many frames are unanswered or
    unread, and raises StreamError when nobody answers or reads for `timeout_s`: the stream cannot lock up.

    Where its `route` allows a gap the stream outlives its connection: when that is lost, or the service has no more
    room, the receiving thread opens another one. Frames keep their numbers. In mode `every` those without
    an answer are pushed again, except for H.264 and HEVC, whose units mean nothing without those before them. In mode
    `latest` they are given up, and so is what is pushed meanwhile, which never waits. `gaps` says what each loss cost;
    `on_event` gets it too, as `{"type": "gap", "detail": ...}`. `ready` is that of the connection there is.

    A service that shuts down says so first, and then the stream moves without a gap: another thread opens it elsewhere,
    new frames go there (of a bitstream from the next key frame on), and the old connection is asked to answer what it
    has and to end. `moves` says so, and `on_event` gets `{"type": "move", "detail": ...}`.
    """

    def push(self, image: Image | bytes, captured_at_us: int | None = None) -> int:
        """Send one frame: uint8 RGB `(H, W, 3)`, encoded here, or bytes in the stream's codec.

        `captured_at_us` comes back with the mask; without one the monotonic clock is used. Returns the value
        sent. Raises the error that ended the stream, if one did.
        """
        payload = image if isinstance(image, bytes) else encode_picture(image, self._codec)
        stamp_us = time.monotonic_ns() // 1000 if captured_at_us is None else captured_at_us
        with self._changed:
            self._wait_for_room()
        with self._sending:
            with self._changed:
                self._raise_if_over()
                payload, can_begin = self._beginnings.look_at(payload)
                message = pack_frame(PushedFrame(stamp_us, payload))
                left = self._switch() if can_begin else None
                self._frames.push(stamp_us, message)
                socket = None if self._is_moving else self._outlet
            if left is not None:
                say_end(left)
            if socket is not None:
                self._send(socket, message)
        return stamp_us

    def finish(self) -> Iterator[MaskMessage]:
        """Push no more; gives the masks still to come. An iteration in another thread then ends as well."""
        with self._changed:
            self._is_finished = True
            self._changed.notify_all()
        return iter(self)

    def __iter__(self) -> Iterator[MaskMessage]:
        """Every mask as it comes, until the stream ends or, after `finish`, all frames are accounted for.

        Raises the error that ended the stream, and StreamError when frames of mode `every` stay unanswered.
        """
        while True:
            message = self.receive(_QUIET_S if self._mode == "latest" else self._timeout_s)
            if message is not None:
                yield message
                continue
            with self._changed:
                if self._answers:
                    continue
                is_elsewhere = self._is_moving or self._handover is not None
                is_quiet = self._is_finished and self._mode == "latest" and not is_elsewhere
                if self._has_ended() or is_quiet:
                    return
                if self._is_finished and self._mode == "every":
                    raise self._silent()

    def _has_ended(self) -> bool:
        return self._is_over or (self._is_finished and self._frames.settled >= self._frames.pushed)

    def _wait_for_room(self) -> None:
        if self._mode != "every":
            return
        has_room = self._changed.wait_for(
            lambda: self._is_over or (self._unanswered < _WINDOW and len(self._answers) < self._capacity),
            self._timeout_s,
        )
        if not has_room:
            raise self._unread() if len(self._answers) >= self._capacity else self._silent()

    @property
    def _unanswered(self) -> int:
        return self._frames.pushed - self._frames.settled

    def _raise_if_over(self) -> None:
        if self._failure:
            raise self._failure
        if self._is_over or self._is_closing or self._is_finished:
            raise InvalidRequestError(
                "A frame was pushed after the stream had ended.",
                "an open stream",
                "Push before `finish` and `close`, or open a new stream.",
            )

    def _wait_to_receive(self) -> None:
        """Never: what comes is bounded by what was pushed."""

    def _send(self, socket: ClientConnection, message: bytes) -> None:
        try:
            socket.send(message)
        except (ConnectionClosed, OSError) as error:
            if self._route.max_gap_s:
                return  # the receiving thread pushes it again or reports it, or says why the stream is over
            self._receiver.join(self._timeout_s)
            raise (self._failure or self._lost("while a frame was sent")) from error

    def _silent(self) -> StreamError:
        return StreamError(
            f"{self._url} has left {self._unanswered} frames unanswered for {self._timeout_s:g} s.",
            "an answer to every frame",
            "Check the service's load and its log.",
        )

    def _unread(self) -> StreamError:
        return StreamError(
            f"{len(self._answers)} masks lie unread.",
            f"fewer than {self._capacity} on a stream that keeps every frame",
            "Read masks while pushing: in the same loop with `arrived`, or in another thread.",
        )
