"""The real-time core with real threads, and a backend that a test can hold, break or watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from service.contract.bundle import Bundle, open_bundle
from service.contract.masks import decode_mask
from service.errors import BackendError, InvalidPictureError, SurgsegError, UnavailableError
from service.frames import DropReason
from service.pipeline.latest_frames import Mode
from service.pipeline.live_stream import PushedStream
from service.pipeline.pipeline import Pipeline
from service.pipeline.subscription import Subscription
from service.settings import Settings
from service.telemetry import Telemetry

WAIT_S = 20.0


class HeldBackend:
    """Thresholds like the small bundle's graph; each inference waits for `gate`, and `fault` breaks it."""

    name = "held"
    precision = "uint8"

    def __init__(self, batch_sizes: tuple[int, ...]) -> None:
        self.batch_sizes = batch_sizes
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fault: Exception | None = None
        self.calls: list[int] = []
        self.is_closed = False

    def segment(self, images_nhwc: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if self.fault is not None:
            raise self.fault
        self.calls.append(len(images_nhwc))
        return (images_nhwc.sum(axis=3, dtype=np.uint16) > 3 * 127).astype(np.uint8)

    def close(self) -> None:
        self.is_closed = True

    def hold(self) -> None:
        """Let the next inference begin and not end; returns at once."""
        self.entered.clear()
        self.gate.clear()


@dataclass
class Rig:
    pipeline: Pipeline
    backend: HeldBackend
    telemetry: Telemetry
    fatal: list[BaseException]
    streams: list[PushedStream] = field(default_factory=list)
    errors: list[tuple[int, SurgsegError]] = field(default_factory=list)
    failures: list[SurgsegError] = field(default_factory=list)
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1))
    woken: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def open(self, mode: Mode = Mode.LATEST, codec: str = "png") -> tuple[PushedStream, Subscription]:
        stream = self.pipeline.open_pushed(
            codec,
            mode,
            on_undecodable=lambda sequence, error: self.errors.append((sequence, error)),
            on_room=self.room.release,
            on_failure=self.failures.append,
        )
        self.streams.append(stream)
        return stream, stream.subscribe("png", mode, self.woken.release)

    def push_lossless(self, stream: PushedStream, data: bytes, captured_at_us: int) -> None:
        assert self.room.acquire(timeout=WAIT_S)
        stream.push(data, captured_at_us)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return open_bundle(small_bundle)


@pytest.fixture
def make_rig(bundle: Bundle) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(*, is_started: bool = True, **options: Any) -> Rig:
        settings = Settings(_env_file=None, **{"deadline_s": WAIT_S, **options})
        backend = HeldBackend(settings.batch_sizes)
        telemetry = Telemetry(settings.batch_sizes)
        fatal: list[BaseException] = []
        pipeline = Pipeline(bundle, lambda: backend, settings, telemetry, fatal.append)
        rig = Rig(pipeline, backend, telemetry, fatal)
        if is_started:
            pipeline.start().result(WAIT_S)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.backend.gate.set()
        assert rig.pipeline.stop(WAIT_S) or rig.fatal
        for stream in rig.streams:
            assert stream.join(WAIT_S)


def picture(brightness: int) -> bytes:
    """A PNG of one brightness, small so that decoding takes no time."""
    return cv2.imencode(".png", np.full((18, 32, 3), brightness, np.uint8))[1].tobytes()


def eventually(is_true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.002)


def is_conserved(stream: PushedStream) -> bool:
    ledger = stream.ledger
    return ledger.received == ledger.segmented + sum(ledger.dropped.values()) + ledger.pending


def test_a_mask_is_computed_from_its_own_frame(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open()
    for number, brightness in enumerate([200, 10, 220, 30], start=1):
        assert stream.push(picture(brightness), captured_at_us=number) == number
        assert rig.woken.acquire(timeout=WAIT_S)
        answer = mailbox.take()
        assert answer is not None
        assert answer.segmented.frame.captured_at_us == number
        mask_hw = decode_mask(answer.payload, "png")
        assert mask_hw.shape == (288, 512)
        assert (mask_hw == (brightness > 127)).all()
        assert set(answer.segmented.frame.timeline.durations_s()) == {
            "decode", "prepare", "wait", "infer", "encode",
        }  # fmt: skip


def test_the_newest_frame_wins_and_the_others_are_counted(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open()
    rig.backend.hold()
    stream.push(picture(0), 0)
    assert rig.backend.entered.wait(WAIT_S)
    for number in range(1, 6):
        stream.push(picture(0), number)
        assert is_conserved(stream)
    eventually(lambda: stream.ledger.pending == 2)
    rig.backend.gate.set()
    eventually(lambda: stream.ledger.pending == 0)
    assert stream.ledger.dropped == {DropReason.SUPERSEDED: 4}
    assert stream.ledger.segmented == 2
    answer = mailbox.take()
    assert answer is not None
    assert answer.segmented.frame.captured_at_us == 5
    assert mailbox.skipped == 1
    assert rig.metric("surgseg_viewer_skipped_total", stream="1") == 1


def test_a_frame_that_waited_too_long_is_dropped(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(deadline_s=0.05)
    blocker, _ = rig.open()
    late, mailbox = rig.open()
    rig.backend.hold()
    blocker.push(picture(0), 0)
    assert rig.backend.entered.wait(WAIT_S)
    late.push(picture(0), 0)
    time.sleep(0.1)
    rig.backend.gate.set()
    eventually(lambda: late.ledger.pending == 0)
    assert late.ledger.dropped == {DropReason.DEADLINE: 1}
    assert mailbox.take() is None
    assert rig.metric("surgseg_frames_dropped_total", stream="2", reason="deadline") == 1


def test_a_lossless_stream_answers_every_frame_in_order(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY)
    sent = 40
    pusher = threading.Thread(
        target=lambda: [rig.push_lossless(stream, picture(200), number) for number in range(sent)]
    )
    pusher.start()
    got = []
    for _ in range(sent):
        assert rig.woken.acquire(timeout=WAIT_S)
        answer = mailbox.take()
        assert answer is not None
        got.append(answer.segmented.frame.captured_at_us)
    pusher.join(WAIT_S)
    assert got == list(range(sent))
    assert stream.ledger.dropped == {}
    assert stream.ledger.segmented == sent


def test_a_lossless_viewer_who_does_not_read_holds_back_only_its_own_sender(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig(every_depth=3)
    stream, mailbox = rig.open(Mode.EVERY)
    pushed = 0
    while rig.room.acquire(timeout=1.0):
        stream.push(picture(0), pushed)
        pushed += 1
        assert pushed < 50
    # Three places, one frame in the reader's hands, one waiting to be decoded.
    assert pushed == 5
    assert len(mailbox) == 3
    with pytest.raises(BufferError):
        stream.push(picture(0), pushed)
    other, others_mailbox = rig.open()
    other.push(picture(0), 7)
    eventually(lambda: len(others_mailbox) == 1)
    eventually(lambda: mailbox.take() is None and stream.ledger.pending == 1)
    assert stream.ledger.segmented == 5
    assert DropReason.SUPERSEDED not in stream.ledger.dropped


def test_a_picture_that_cannot_be_decoded_is_named_counted_and_survived(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, mailbox = rig.open()
    stream.push(b"no picture", 1)
    eventually(lambda: bool(rig.errors))
    sequence, error = rig.errors[0]
    assert sequence == 1
    assert isinstance(error, InvalidPictureError)
    stream.push(picture(200), 2)
    eventually(lambda: len(mailbox) == 1)
    assert stream.ledger.dropped == {DropReason.UNDECODABLE: 1}


def test_a_closed_stream_settles_and_gives_its_slot_back(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_streams=1)
    stream, _ = rig.open()
    with pytest.raises(UnavailableError, match="1 streams are open"):
        rig.open()
    rig.backend.hold()
    for number in range(3):
        stream.push(picture(0), number)
        eventually(lambda: rig.backend.entered.is_set())
    stream.close()
    assert rig.metric("surgseg_streams") == 1, "a frame is still at the engine"
    rig.backend.gate.set()
    eventually(lambda: rig.metric("surgseg_streams") == 0)
    assert stream.ledger.pending == 0
    assert is_conserved(stream)
    assert stream.push(picture(0), 9) == 4
    assert stream.ledger.dropped[DropReason.CLOSED] >= 1
    assert rig.metric("surgseg_stream_fps", stream="1") is None
    assert rig.metric("surgseg_frames_received_total", stream="1") == 4, "its counters stay"
    again, _ = rig.open()
    assert again.label == "1"
    assert again.id != stream.id


def test_frames_of_several_streams_share_a_padded_batch(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(batch_sizes=(1, 4))
    assert rig.backend.calls == [1, 4], "every batch size is warmed"
    opened = [rig.open() for _ in range(3)]
    rig.backend.hold()
    blocker, _ = rig.open()
    blocker.push(picture(0), 0)
    assert rig.backend.entered.wait(WAIT_S)
    for brightness, (stream, _) in zip([200, 20, 210], opened, strict=True):
        stream.push(picture(brightness), 0)
    eventually(lambda: all(stream.ledger.pending for stream, _ in opened))
    time.sleep(0.1)
    rig.backend.gate.set()
    eventually(lambda: all(len(mailbox) for _, mailbox in opened))
    assert rig.backend.calls[2:4] == [1, 4]
    for brightness, (_, mailbox) in zip([200, 20, 210], opened, strict=True):
        answer = mailbox.take()
        assert answer is not None
        assert (decode_mask(answer.payload, "png") == (brightness > 127)).all()
    assert rig.metric("surgseg_batch_size_sum") == 4, "padding is not counted"


def test_each_viewer_gets_its_own_format(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, as_png = rig.open()
    as_rle = stream.subscribe("rle", Mode.LATEST, rig.woken.release)
    stream.push(picture(200), 0)
    eventually(lambda: len(as_png) == 1 and len(as_rle) == 1)
    png, rle = as_png.take(), as_rle.take()
    assert png is not None
    assert rle is not None
    np.testing.assert_array_equal(decode_mask(png.payload, "png"), decode_mask(rle.payload, "rle"))


def test_a_dead_engine_is_told_once_and_to_every_stream(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, _ = rig.open()
    rig.backend.fault = BackendError("The device is gone.", "a mask", "Restart.")
    stream.push(picture(0), 0)
    eventually(lambda: bool(rig.failures))
    assert rig.fatal == [rig.backend.fault]
    assert not rig.pipeline.is_ready()
    assert rig.backend.is_closed
    with pytest.raises(UnavailableError, match="failed"):
        rig.open()


def test_a_golden_picture_with_another_mask_ends_the_start(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(is_started=False)
    rig.backend.segment = lambda images: np.zeros(images.shape[:3], np.uint8)  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="golden"):
        rig.pipeline.start().result(WAIT_S)
    assert rig.fatal == [], "it never started, so nothing died"
    assert not rig.pipeline.is_ready()


def test_a_backend_that_gives_masks_of_another_form_ends_the_start(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(is_started=False)
    rig.backend.segment = lambda images: np.zeros(images.shape[:3], np.int64)  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="int64"):
        rig.pipeline.start().result(WAIT_S)


def test_nothing_is_taken_before_the_start_and_after_the_end(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(is_started=False)
    with pytest.raises(UnavailableError, match="loaded"):
        rig.open()
    rig.pipeline.start().result(WAIT_S)
    rig.open()
    rig.pipeline.refuse_new()
    assert not rig.pipeline.is_ready()
    with pytest.raises(UnavailableError, match="shutting down"):
        rig.open()


def test_an_idle_engine_runs_the_golden_picture_to_stay_ready(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(probe_interval_s=0.02, ready_window_s=5.0)
    before = len(rig.backend.calls)
    eventually(lambda: len(rig.backend.calls) >= before + 3)
    assert rig.pipeline.is_ready()


def test_an_engine_that_hangs_is_not_ready(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(probe_interval_s=0.01, ready_window_s=0.2)
    eventually(rig.pipeline.is_ready)
    rig.backend.hold()
    eventually(lambda: not rig.pipeline.is_ready())
    assert rig.metric("surgseg_ready") == 0
    rig.backend.gate.set()
    eventually(rig.pipeline.is_ready)


def test_a_posted_picture_gets_its_mask_and_is_counted(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    payload, timeline = rig.pipeline.images.segment(
        picture(200), time.monotonic(), lambda image_hwc, segmented: segmented.canvas_mask_hw.tobytes()
    )
    assert set(payload) == {1}
    assert list(timeline.durations_s()) == ["decode", "prepare", "wait", "infer", "encode"]
    assert rig.metric("surgseg_frames_segmented_total", stream="images") == 1


def test_a_posted_picture_that_cannot_run_is_refused_with_a_reason(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(request_deadline_s=0.05)
    images = rig.pipeline.images
    rig.backend.hold()
    outcomes: list[BaseException | bytes] = []

    def post() -> None:
        try:
            outcomes.append(images.segment(picture(0), time.monotonic(), lambda *_: b"done")[0])
        except SurgsegError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=post) for _ in range(2)]
    threads[0].start()
    assert rig.backend.entered.wait(WAIT_S)
    threads[1].start()
    eventually(lambda: images.ledger.received == 2)
    time.sleep(0.2)
    rig.backend.gate.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert b"done" in outcomes
    (refusal,) = [outcome for outcome in outcomes if isinstance(outcome, UnavailableError)]
    assert "too long" in str(refusal)
    assert images.ledger.dropped == {DropReason.DEADLINE: 1}
    assert images.ledger.pending == 0


def test_more_requests_than_allowed_are_refused(make_rig: Callable[..., Rig]) -> None:
    images = make_rig(max_requests=1).pipeline.images
    with images.admit(), pytest.raises(UnavailableError, match="at most 1"), images.admit():
        pytest.fail("a second one was admitted")
    with images.admit():
        pass


def test_a_failing_answer_still_settles_the_accounts(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()

    def fail(*_: object) -> bytes:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        rig.pipeline.images.segment(picture(0), time.monotonic(), fail)
    with pytest.raises(InvalidPictureError):
        rig.pipeline.images.segment(b"?", time.monotonic(), fail)
    assert rig.pipeline.images.ledger.pending == 0


def test_no_thread_is_left_behind(make_rig: Callable[..., Rig]) -> None:
    before = {thread.name for thread in threading.enumerate()}
    rig = make_rig()
    for _ in range(3):
        stream, _ = rig.open()
        stream.push(picture(0), 0)
    assert rig.pipeline.stop(WAIT_S)
    for stream in rig.streams:
        assert stream.join(WAIT_S)
    assert {thread.name for thread in threading.enumerate()} <= before
    assert rig.backend.is_closed
