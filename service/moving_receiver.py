"""A MaskReceiver that outlives its connection: it goes on at another replica when one is lost, or leaves."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from service.errors import SurgsegError
from service.handover import Beginnings, Handover
from service.mask_receiver import EventHandler, MaskMessage, MaskReceiver
from service.route import Opened, Route
from service.unanswered import Gap, Loss, Move, Unanswered, UnansweredFrames
from service.wire import END, VIDEO_CODECS, Codec, Mode


class MovingReceiver(MaskReceiver):
    """What a MaskStream does about replicas; see there. Masks are read of one connection at a time, so order stays.

    Frames are pushed to `_outlet`, which differs from the connection that is read while a stream is handed over. Who
    sends holds `_sending`, which is taken before the other lock: so END follows the last frame of a connection.
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
        self.moves: list[Move] = []
        self._codec = codec
        self._route = route
        self._service = opened.url
        keeps_frames = route.max_gap_s > 0 and mode == "every" and codec not in VIDEO_CODECS
        self._frames = UnansweredFrames(mode, keeps_messages=keeps_frames)
        self._beginnings = Beginnings(codec)
        self._sending = threading.Lock()
        self._outlet = opened.socket
        self._handover: Handover | None = None
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

    def close(self) -> None:
        """See `MaskReceiver.close`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            opened = self._handover.opened if self._handover else None
        if opened is not None:
            opened.abandon()
        super().close()

    def _note_answer(self, answer: MaskMessage) -> MaskMessage:
        self._route.note_answer()
        return self._frames.answer(answer)

    def _take_event(self, event: dict[str, Any]) -> None:
        with self._changed:
            if isinstance(event.get("sequence"), int):
                event["sequence"] = self._frames.settle(event["sequence"])
                self._changed.notify_all()
            dropped, skipped = event.get("dropped"), event.get("skipped")
            if event["type"] == "closing" and isinstance(dropped, dict) and isinstance(skipped, int):
                self._frames.account(dropped, skipped)
            has_to_move = event["type"] == "leaving" and self._route.max_gap_s > 0 and self._handover is None
            if has_to_move:
                self._handover = Handover.begin(event)
            is_left = self._handover is not None and self._handover.has_switched
        if event["type"] != "closing" or not is_left:  # it is the connection that closes, not the stream
            super()._take_event(event)
        if has_to_move:
            mover = threading.Thread(
                target=self._hand_over, args=(self._handover,), name="surgseg-handover", daemon=True
            )
            mover.start()

    def _hand_over(self, handover: Handover) -> None:
        """In a thread of its own: find the next connection, and do what no push may come to do."""
        try:
            opened = self._route.open_elsewhere(
                self._service, handover.ends_at, lambda pause_s: self._wait_to_leave(handover, pause_s)
            )
        except SurgsegError:
            opened = None  # the service closes the stream in a while, and then there is a gap
        if opened is not None and not self._offer(handover, opened):
            opened.abandon()
        self._wait_to_leave(handover, max(0.0, handover.ends_at - time.monotonic()))
        with self._sending:
            with self._changed:
                is_last = self._is_finished and self._handover is handover and not handover.has_switched
            if is_last:
                say_end(self._socket)

    def _offer(self, handover: Handover, opened: Opened) -> bool:
        """The next connection is there. Pictures go to it from now on; a bitstream's next key frame will."""
        with self._sending:
            with self._changed:
                if self._has_to_leave(handover):
                    return False
                handover.opened = opened
                self._beginnings.seek()
                left = self._switch() if self._beginnings.are_everywhere else None
            if left is not None:
                say_end(left)
        return True

    def _has_to_leave(self, handover: Handover) -> bool:
        """Whether there is nothing left to find or to wait for; the lock is held."""
        is_past = self._handover is not handover or handover.has_switched
        return is_past or self._is_closing or self._is_finished

    def _wait_to_leave(self, handover: Handover, pause_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._has_to_leave(handover), pause_s)

    def _switch(self) -> ClientConnection | None:
        """Push to the next connection from now on, if there is one; gives who gets END. Both locks are held."""
        handover = self._handover
        if handover is None or handover.opened is None or handover.has_switched:
            return None
        handover.has_switched = True
        self._frames.split()
        self._outlet = handover.opened.socket
        self._changed.notify_all()
        return self._socket

    def _goes_on(self, failure: SurgsegError | None) -> bool:
        with self._changed:
            handover, self._handover = self._handover, None
            self._changed.notify_all()
        opened = None if handover is None else handover.opened
        may_go_on = not self._is_closing and (failure is None or self._may_resume(failure))
        if may_go_on and handover is not None and opened is not None and handover.has_switched:
            if failure is None or not self._frames.has_to_repeat:
                self._follow(handover, opened, failure)
                return True
        elif may_go_on and failure is not None:
            return self._resume(failure, opened)
        if opened is not None:
            opened.abandon()
        return may_go_on and failure is not None and self._resume(failure)

    def _may_resume(self, failure: SurgsegError) -> bool:
        return self._route.may_resume(failure, self._error, self._socket.close_code)

    def _follow(self, handover: Handover, opened: Opened, failure: SurgsegError | None) -> None:
        """The connection that leaves has ended; who pushes has gone on already."""
        self._connection.close()
        self._error = None
        change: Gap | Move
        with self._changed:
            loss = self._frames.follow(is_whole=failure is None)
            if failure is None:
                has_other_model = opened.ready.get("model") != self.ready.get("model")
                now = time.monotonic()
                change = Move(handover.reason, opened.url, handover.began_at, now, has_other_model)
                self.moves.append(change)
            else:
                change = self._describe_gap(opened, failure, time.monotonic(), loss)
                self.gaps.append(change)
            self._adopt(opened)
        if self._is_closing:
            opened.abandon()
        self._on_event({"type": "move" if failure is None else "gap", "detail": change.describe()})

    def _resume(self, failure: SurgsegError, opened: Opened | None = None) -> bool:
        lost_at = time.monotonic()
        with self._changed:
            self._is_moving = True
        self._connection.close()
        self._error = None
        try:
            opened = opened or self._route.reopen(self._service, self._wait_unless_closing)
        except SurgsegError as error:
            self._failure = error
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
        with self._changed:
            loss = self._frames.lose()
            self._beginnings.seek()
            waiting = self._frames.kept_after(self._frames.settled)
            gap = self._describe_gap(opened, failure, lost_at, loss, len(waiting))
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

    def _describe_gap(
        self, opened: Opened, failure: SurgsegError, lost_at: float, loss: Loss, resent: int = 0
    ) -> Gap:
        has_other_model = opened.ready.get("model") != self.ready.get("model")
        return Gap(failure.found, opened.url, lost_at, time.monotonic(), loss, resent, has_other_model)

    def _adopt(self, opened: Opened) -> None:
        """Read this connection, and push to it, from now on; the lock is held."""
        self._socket, self._connection, self.ready = opened.socket, opened.connection, opened.ready
        self._outlet = opened.socket
        self._service = self._url = opened.url
        self._is_moving = False
        self._changed.notify_all()

    def _give_up(self, failure: SurgsegError, lost_at: float) -> None:
        with self._changed:
            loss = self._frames.give_up()
            self._is_moving = False
            if not self._is_closing:
                self.gaps.append(Gap(failure.found, "", lost_at, time.monotonic(), loss))


def say_end(socket: ClientConnection) -> None:
    """Ask a service to answer what it has and to close."""
    with contextlib.suppress(ConnectionClosed, OSError):  # then the receiving thread sees the same
        socket.send(END)


def _push_again(socket: ClientConnection, frames: Sequence[Unanswered]) -> bool:
    """False when the connection is lost again: what is left waits for the next one."""
    try:
        for frame in frames:
            socket.send(frame.message)
    except (ConnectionClosed, OSError):
        return False
    return True
