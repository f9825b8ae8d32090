"""Pictures posted one by one: they share the engine with the live streams and never take more than a turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager

from service.contract.geometry import FitRule
from service.contract.masks import MaskFormat
from service.contract.model_card import InputSize
from service.errors import UnavailableError
from service.frames import DropReason, FittedFrame, Frame, SegmentedFrame, Stage, Timeline
from service.pipeline.latest_frames import Drop, Mode
from service.pipeline.ledger import Ledger
from service.pipeline.waiting_room import WaitingRoom
from service.processors import available_cores
from service.streams.pictures import decode_fitted
from service.streams.reader import take_over

_GRACE_S = 10.0


class ImageRequests:
    """All posted pictures.

    They wait in as many lanes as a batch has places, so together they take as many turns as that many live
    streams, however many requests there are.

    `max_requests` are worked on at once; more are refused, and `on_refused` told. A few are decoded at once, which
    bounds memory.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        room: WaitingRoom,
        lanes: int,
        max_requests: int,
        on_refused: Callable[[], None],
        max_pixels: int,
        wait_limit_s: float,
        input_size: InputSize,
        fit_rule: FitRule,
    ) -> None:
        self.ledger = ledger
        self.lane_ids = tuple(f"images-{number}" for number in range(1, lanes + 1))
        self._room = room
        self._max_requests = max_requests
        self._on_refused = on_refused
        self._max_pixels = max_pixels
        self._wait_limit_s = wait_limit_s
        self._input_size = input_size
        self._fit_rule: FitRule = fit_rule
        self._admissions = threading.BoundedSemaphore(max_requests)
        self._decoders = threading.BoundedSemaphore(available_cores())
        self._lock = threading.Lock()
        self._answers: dict[int, Future[SegmentedFrame]] = {}
        for lane_id in self.lane_ids:
            room.add_stream(lane_id, Mode.EVERY, capacity=max_requests)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """One request's place, from before its body is read. Raises UnavailableError when all are taken."""
        if not self._admissions.acquire(blocking=False):
            self._on_refused()
            raise UnavailableError(
                f"{self._max_requests} pictures are being worked on.",
                f"at most {self._max_requests} at once",
                "Try again in a moment, or raise SURGSEG_MAX_REQUESTS.",
            )
        try:
            yield
        finally:
            self._admissions.release()

    def segment(
        self, data: bytes, arrived_at: float, encode: Callable[[SegmentedFrame], bytes]
    ) -> tuple[bytes, Timeline]:
        """Decode a picture, wait for its mask, encode the answer; blocks.

        `arrived_at` is when its bytes had come. `encode` gets the picture and its mask at the model's size. Raises
        InvalidPictureError, PayloadTooLargeError, or UnavailableError when it could not run in time.
        """
        sequence = self.ledger.receive()
        try:
            frame = self._decode(data, arrived_at, sequence)
        except BaseException:
            self.ledger.drop(sequence, DropReason.UNDECODABLE)
            raise
        answer: Future[SegmentedFrame] = Future()
        with self._lock:
            self._answers[sequence] = answer
        if drop := self._room.offer(frame):
            self.drop(drop)
        segmented = self._wait(answer)
        try:
            payload = encode(segmented)
            frame.timeline.mark(Stage.ENCODE, time.monotonic())
        finally:
            self.ledger.segment(segmented)
        return payload, frame.timeline

    def formats(self) -> Iterable[MaskFormat]:
        """See `Audience.formats`: none, for each request encodes its own mask and holds up nobody."""
        return ()

    def deliver(self, segmented: SegmentedFrame, payloads: Mapping[MaskFormat, bytes]) -> None:
        """See `Audience.deliver`. The request counts its frame when it has encoded the mask."""
        self._room.finish(segmented.frame.stream_id)
        answer = self._pop(segmented.frame.sequence)
        if answer.set_running_or_notify_cancel():
            answer.set_result(segmented)
        else:
            self.ledger.segment(segmented)

    def drop(self, drop: Drop) -> None:
        """Count a picture that will not run and tell its request why."""
        self.ledger.drop(drop.frame.sequence, drop.reason)
        answer = self._pop(drop.frame.sequence)
        if answer.set_running_or_notify_cancel():
            answer.set_exception(_unavailable(drop.reason))

    def close(self) -> None:
        """Refuse what still waits."""
        for lane_id in self.lane_ids:
            for drop in self._room.remove_stream(lane_id):
                self.drop(drop)
        self.ledger.close()

    def _pop(self, sequence: int) -> Future[SegmentedFrame]:
        with self._lock:
            return self._answers.pop(sequence)

    def _decode(self, data: bytes, arrived_at: float, sequence: int) -> Frame:
        with self._decoders:
            canvas_hwc, fit, decoded_at = decode_fitted(
                data, self._input_size, self._fit_rule, max_pixels=self._max_pixels
            )
            fitted = FittedFrame(
                canvas_hwc=canvas_hwc,
                fit=fit,
                pts_s=None,
                sequence=sequence,
                captured_at_us=0,
                arrived_at=arrived_at,
                decoded_at=decoded_at,
                prepared_at=time.monotonic(),
            )
            return take_over(
                fitted,
                stream_id=self.lane_ids[sequence % len(self.lane_ids)],
                sequence=sequence,
                wait_limit_s=self._wait_limit_s,
            )

    def _wait(self, answer: Future[SegmentedFrame]) -> SegmentedFrame:
        try:
            return answer.result(self._wait_limit_s + _GRACE_S)
        except TimeoutError as error:
            if answer.cancel():
                raise _unavailable(DropReason.DEADLINE) from error
            return answer.result()


def _unavailable(reason: DropReason) -> UnavailableError:
    if reason is DropReason.DEADLINE:
        found = "The picture waited too long for the model."
    else:
        found = "The service is shutting down."
    return UnavailableError(found, "a service with time to spare", "Try again in a moment.")
