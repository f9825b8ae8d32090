"""The client's end of `/v1/stream`: frames are pushed, masks are received."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from service.contract.geometry import Image
from service.errors import InvalidRequestError, StreamError, SurgsegError
from service.mask_receiver import EventHandler, MaskMessage, MaskReceiver
from service.route import Opened, Route
from service.unanswered import Gap, Unanswered, UnansweredFrames
from service.wire import VIDEO_CODECS, Codec, Mode, PushedFrame, encode_picture, pack_frame

_QUIET_S = 2.0  # a live stream's last frames may be dropped: so long we wait for an answer to them
_WINDOW = 16  # frames of mode `every` on their way at once: enough to keep a far service busy


class MaskStream(MaskReceiver):
    """An open stream. One thread may push while another reads; a third thread, its own, receives.

    Unread answers are bounded by `capacity`. In mode `latest` the oldest gives way and is counted in
    `unread`; in mode `every` none may be lost, so `push` waits while too many frames are unanswered or
    unread, and raises StreamError when nobody answers or reads for `timeout_s`: the stream cannot lock up.

    Where its `route` allows a gap the stream outlives its connection: when that is lost, or the service shuts down or
    has no more room, the receiving thread opens another one. Frames keep their numbers. In mode `every` those without
    an answer are pushed again, except for H.264 and HEVC, whose units mean nothing without those before them. In mode
    `latest` they are given up, and so is what is pushed meanwhile, which never waits. `gaps` says what each move cost;
    `on_event` gets it too, as `{"type": "gap", "detail": ...}`. `ready` is that of the connection there is.
    """

    def __init__(
        self,
        opened: Opened,
        route: Route,
        *,
        codec: Codec,
        mode: Mode,
        on_event: EventHandler | None,
        capacity: int,
        timeout_s: float,
    ) -> None:
        self.gaps: list[Gap] = []
        self._codec = codec
        self._route = route
        self._service = opened.url
        keeps_frames = route.max_gap_s > 0 and mode == "every" and codec not in VIDEO_CODECS
        self._frames = UnansweredFrames(mode, keeps_messages=keeps_frames)
        self._is_moving = False
        self._is_finished = False
        super().__init__(
            opened.socket,
            opened.connection,
            opened.ready,
            url=opened.url,
            mode=mode,
            on_event=on_event,
            capacity=capacity,
            timeout_s=timeout_s,
        )

    def push(self, image: Image | bytes, captured_at_us: int | None = None) -> int:
        """Send one frame: uint8 RGB `(H, W, 3)`, encoded here, or bytes in the stream's codec.

        `captured_at_us` comes back with the mask; without one the monotonic clock is used. Returns the value
        sent. Raises the error that ended the stream, if one did.
        """
        payload = image if isinstance(image, bytes) else encode_picture(image, self._codec)
        stamp_us = time.monotonic_ns() // 1000 if captured_at_us is None else captured_at_us
        message = pack_frame(PushedFrame(stamp_us, payload))
        with self._changed:
            self._wait_for_room()
            self._raise_if_over()
            self._frames.push(stamp_us, message)
            socket = None if self._is_moving else self._socket
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
                if self._has_ended() or (
                    self._is_finished and self._mode == "latest" and not self._is_moving
                ):
                    return
                if self._is_finished:
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

    def _note_answer(self, answer: MaskMessage) -> MaskMessage:
        self._route.note_answer()
        return self._frames.answer(answer)

    def _take_event(self, event: dict[str, Any]) -> None:
        if isinstance(event.get("sequence"), int):
            with self._changed:
                event["sequence"] = self._frames.settle(event["sequence"])
                self._changed.notify_all()
        super()._take_event(event)

    def _send(self, socket: ClientConnection, message: bytes) -> None:
        try:
            socket.send(message)
        except (ConnectionClosed, OSError) as error:
            if self._route.max_gap_s:
                return  # the receiving thread pushes it again or reports it, or says why the stream is over
            self._receiver.join(self._timeout_s)
            raise (self._failure or self._lost("while a frame was sent")) from error

    def _resume(self, failure: SurgsegError) -> bool:
        if not self._route.may_resume(failure, self._error, self._socket.close_code):
            return False
        lost_at = time.monotonic()
        with self._changed:
            self._is_moving = True
        self._connection.close()
        self._error = None
        try:
            opened = self._route.reopen(self._service, self._wait_unless_closing)
        except SurgsegError as error:
            self._failure = error
            opened = None
        if opened is None:
            self._give_up(failure, lost_at)
            return False
        self._move(opened, failure, lost_at)
        return True

    def _wait_unless_closing(self, pause_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._is_closing, pause_s)

    def _move(self, opened: Opened, failure: SurgsegError, lost_at: float) -> None:
        """Frames to push again go before those that are pushed meanwhile, so their order is kept."""
        old_model = self.ready.get("model")
        with self._changed:
            loss = self._frames.lose()
            waiting = self._frames.kept_after(self._frames.settled)
            gap = Gap(
                reason=failure.found,
                url=opened.url,
                lost_at=lost_at,
                resumed_at=time.monotonic(),
                loss=loss,
                resent=len(waiting),
                has_other_model=opened.ready.get("model") != old_model,
            )
            self.gaps.append(gap)
            if not waiting:
                self._adopt(opened)
        while waiting:
            is_open = _push_again(opened.socket, waiting)
            with self._changed:
                waiting = self._frames.kept_after(waiting[-1].number) if is_open else ()
                if not waiting:
                    self._adopt(opened)
        if self._is_closing:
            opened.connection.close()
        self._on_event({"type": "gap", "detail": gap.describe()})

    def _adopt(self, opened: Opened) -> None:
        """Push to this connection from now on; the lock is held."""
        self._socket, self._connection, self.ready = opened.socket, opened.connection, opened.ready
        self._service = self._url = opened.url
        self._is_moving = False
        self._changed.notify_all()

    def _give_up(self, failure: SurgsegError, lost_at: float) -> None:
        with self._changed:
            loss = self._frames.give_up()
            self._is_moving = False
            if not self._is_closing:
                self.gaps.append(Gap(failure.found, "", lost_at, time.monotonic(), loss))

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


def _push_again(socket: ClientConnection, frames: Sequence[Unanswered]) -> bool:
    """False when the connection is lost again: what is left waits for the next one."""
    try:
        for frame in frames:
            socket.send(frame.message)
    except (ConnectionClosed, OSError):
        return False
    return True
