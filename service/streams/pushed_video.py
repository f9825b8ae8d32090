"""H.264 and HEVC that a client pushes, one access unit a message, as a source of frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from service.contract.geometry import FitRule
from service.errors import InvalidPictureError
from service.frames import DecoderLoss, DropReason
from service.streams.access_units import KeyGate
from service.streams.decoded_video import DecodedVideo, DecoderLostError, StreamState
from service.streams.decoder_messages import LAST, TAKEN, DropMessage, Event, FrameMessage, pack_unit
from service.streams.decoder_process import DecoderPool
from service.streams.decoder_terms import DecoderTerms
from service.streams.pushed import LOSSLESS_PUSHES, PushedPicture
from service.streams.restarts import Restarts

# More than this waiting to be sent to a decoder that does not read means that it hangs or that the client floods it.
_MOST_OUTBOUND_BYTES = 64 * 2**20
_FIRST_RESTART_S, _MOST_RESTART_S, _HEALTHY_S = 0.1, 5.0, 30.0


class PushedVideo(DecodedVideo):
    """Access units in, pictures out; the frames' sequence numbers are those of the units.

    `on_lost(sequence, reason, error)` is told of every unit that gives no picture, and why; `on_room` that a lossless
    stream may push again, once for each unit pushed. Both may be called in any thread.
    """

    def __init__(
        self,
        pool: DecoderPool,
        terms: DecoderTerms,
        *,
        codec: str,
        fit_rule: FitRule,
        is_lossless: bool,
        on_lost: Callable[[int, DropReason, InvalidPictureError | None], None],
        on_room: Callable[[], None],
        on_state: Callable[[StreamState, str], None],
        on_restart: Callable[[DecoderLoss], None],
    ) -> None:
        job = replace(terms.plan_job(fit_rule, is_lossless=is_lossless), codec=codec)
        restarts = Restarts(terms.restarts, _FIRST_RESTART_S, _MOST_RESTART_S, _HEALTHY_S)
        super().__init__(pool, job, restarts=restarts, on_state=on_state, on_restart=on_restart)
        self._hang_s = terms.hang_s
        self._is_lossless = is_lossless
        self._on_lost = on_lost
        self._on_room = on_room
        self._gate = KeyGate(codec)
        self._is_finished = False
        self._pending: dict[int, tuple[PushedPicture, bytes]] = {}  # with the message for the decoder
        self._untaken: dict[int, float] = {}  # units the decoder has not worked on, with when they came

    def push(self, unit: PushedPicture) -> PushedPicture | None:
        """Hand a unit over; gives it back when the stream is closed. Never waits.

        Raises BufferError when the stream is lossless and the decoder has `LOSSLESS_PUSHES` units to take.
        """
        with self._changed:
            if self._is_closed or self._is_finished:
                return unit
            if self._is_lossless and len(self._untaken) >= LOSSLESS_PUSHES:
                raise BufferError("units are waiting, and this stream may not lose them")
            lost = self._admit(unit)
        if lost is not None:
            self._lose(unit.sequence, *lost)
            if self._is_lossless:
                self._on_room()
        return None

    def finish(self) -> None:
        """No unit follows: the decoder gives the pictures that it holds back, and every unit gets its account."""
        with self._changed:
            self._is_finished = True
            self._put(LAST)
            self._changed.notify_all()

    def unread(self) -> tuple[PushedPicture, ...]:
        """Take out the units that give no picture any more; call it after `close`."""
        with self._changed:
            units = tuple(unit for unit, _ in self._pending.values())
            self._pending.clear()
            self._untaken.clear()
        return units

    def _admit(self, unit: PushedPicture) -> tuple[DropReason, InvalidPictureError | None] | None:
        """Queue a unit for the decoder; otherwise why not. The caller holds the lock."""
        if self._outbound_bytes > _MOST_OUTBOUND_BYTES:
            self._gate.close()
            return DropReason.BEHIND, None
        try:
            admitted = self._gate.admit(unit.data)
        except InvalidPictureError as error:
            return DropReason.UNDECODABLE, error
        if admitted is None:
            return DropReason.AWAITING_KEY, None
        data, is_key = admitted
        message = pack_unit(unit.sequence, unit.arrived_at, is_key, data)
        self._pending[unit.sequence] = unit, message
        self._untaken[unit.sequence] = unit.arrived_at
        self._put(message)
        return None

    def _first_messages(self) -> Iterable[bytes]:
        units = [message for _, message in self._pending.values()]
        return [*units, LAST] if self._is_finished else units

    def _is_complete(self) -> bool:
        return self._is_finished and not self._pending

    def _finish(self) -> None:
        if not self._is_finished:  # a pushed stream ends with its connection, not with its decoder
            raise DecoderLostError("its decoder has ended by itself", DecoderLoss.ENDED)

    def _end(self) -> None:
        """Nothing that the lost decoder held gives a picture any more; the next one begins at a key frame."""
        with self._changed:
            lost = tuple(self._pending)
            self._pending.clear()
            self._gate.close()
            is_closed = self._is_closed
        for sequence in lost:
            self._lose(sequence, DropReason.CLOSED if is_closed else DropReason.DECODER_LOST)

    def _identify(self, message: FrameMessage) -> tuple[int | None, int, float] | None:
        with self._changed:
            unit, _ = self._pending.pop(message.sequence, (None, b""))
        return None if unit is None else (unit.sequence, unit.captured_at_us, unit.arrived_at)

    def _drop(self, message: DropMessage) -> None:
        for sequence in message.sequences:
            with self._changed:
                is_ours = self._pending.pop(sequence, None) is not None
            if is_ours:
                self._lose(sequence, message.reason)

    def _note(self, event: Event) -> None:
        if event.kind == TAKEN:
            self._free(event.fields.get("sequence"))

    def _watch(self, heard_at: float) -> None:
        with self._changed:
            oldest_at = min(self._untaken.values(), default=None)
        silent_s = 0.0 if oldest_at is None else time.monotonic() - max(oldest_at, heard_at)
        if silent_s > self._hang_s:
            raise DecoderLostError(f"its decoder has not answered for {silent_s:.1f} s", DecoderLoss.HUNG)

    def _lose(self, sequence: int, reason: DropReason, error: InvalidPictureError | None = None) -> None:
        if reason is DropReason.UNDECODABLE and error is None:
            error = InvalidPictureError(
                f"Access unit {sequence} gave no intact picture.",
                f"one whole access unit of {self._job.codec} in each message",
                "Check the encoder and the network; the stream goes on.",
            )
        self._on_lost(sequence, reason, error)
        self._free(sequence)

    def _free(self, sequence: object) -> None:
        """A lossless stream has room again, once for each unit."""
        with self._changed:
            was_waiting = isinstance(sequence, int) and self._untaken.pop(sequence, None) is not None
        if self._is_lossless and was_waiting:
            self._on_room()
