"""The engine in the real pipeline: batches, start, readiness, death, posted pictures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from service.contract.bundle import open_bundle
from service.contract.masks import decode_mask
from service.errors import BackendError, InvalidPictureError, SurgsegError, UnavailableError
from service.frames import DropReason
from service.pipeline.latest_frames import Mode
from tests.service.pipeline_rig import WAIT_S, Rig, eventually, picture, running_rigs


@pytest.fixture
def make_rig(small_bundle: Path) -> Iterator[Callable[..., Rig]]:
    with running_rigs(open_bundle(small_bundle)) as make:
        yield make


def test_frames_of_several_streams_share_a_padded_batch(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(batch_sizes=(1, 4))
    assert rig.backend.calls[:2] == [1, 4], "every batch size is warmed"
    warmed = len(rig.backend.calls)
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
    assert rig.backend.calls[warmed : warmed + 2] == [1, 4]
    for brightness, (_, mailbox) in zip([200, 20, 210], opened, strict=True):
        answer = mailbox.take()
        assert answer is not None
        assert (decode_mask(answer.payload, "png") == (brightness > 127)).all()
    assert rig.metric("surgseg_batch_size_sum") == 4, "padding is not counted"


def test_streams_run_at_once_where_the_backend_can_but_never_two_frames_of_a_live_one(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig(batch_sizes=(1, 2), concurrency=2)
    rig.backend.hold()
    first, first_mailbox = rig.open()
    first.push(picture(200), 1)
    assert rig.backend.entered.wait(WAIT_S)
    first.push(picture(20), 2)
    time.sleep(0.1)
    assert rig.backend.inside == 1, "the second frame waits for the first"
    second, second_mailbox = rig.open()
    second.push(picture(0), 0)
    eventually(lambda: rig.backend.inside == 2)
    rig.backend.gate.set()
    eventually(lambda: first.ledger.segmented == 2 and len(second_mailbox) == 1)
    answer = first_mailbox.take()
    assert answer is not None
    assert answer.segmented.frame.captured_at_us == 2


def test_a_lossless_stream_uses_every_engine_and_keeps_its_order(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(batch_sizes=(1, 2), concurrency=2)
    rig.backend.urgent.clear()
    rig.backend.slow_first.set()
    rig.backend.hold()
    stream, mailbox = rig.open(Mode.EVERY)
    for number in range(3):
        rig.push_lossless(stream, picture(200), number)
    eventually(lambda: rig.backend.inside == 2)
    rig.backend.gate.set()  # now the second frame's inference ends before the first's
    eventually(lambda: len(mailbox) == 3)
    answers = [mailbox.take() for _ in range(3)]
    assert [answer.segmented.frame.captured_at_us for answer in answers if answer] == [0, 1, 2]
    assert rig.backend.urgent == [False] * 3, "nobody waits for a frame of a file"


def test_calls_made_at_once_are_proven_before_the_first_frame(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(batch_sizes=(1, 2), concurrency=2, is_started=False)
    rig.backend.is_wrong_beside_others = True
    rig.backend.lasts_s = 0.02
    opened = rig.pipeline.start()
    with pytest.raises(BackendError, match="golden picture"):
        opened.result(WAIT_S)


@pytest.mark.parametrize(("sizes", "frames"), [((1, 8), 1), ((1, 2, 4, 8), 4), ((4,), 4)])
def test_a_thread_takes_its_share_of_the_largest_batch(
    make_rig: Callable[..., Rig], sizes: tuple[int, ...], frames: int
) -> None:
    rig = make_rig(batch_sizes=sizes, concurrency=2)
    rig.backend.hold()
    blockers = [rig.open()[0] for _ in range(2)]
    for number, blocker in enumerate(blockers, 1):
        blocker.push(picture(0), 0)
        eventually(lambda number=number: rig.backend.inside == number)
    waiting = [rig.open() for _ in range(8)]
    for stream, _ in waiting:
        stream.push(picture(200), 0)
    eventually(lambda: all(stream.ledger.pending for stream, _ in waiting))
    time.sleep(0.1)
    rig.backend.calls.clear()
    rig.backend.gate.set()
    eventually(lambda: all(len(mailbox) for _, mailbox in waiting))
    assert set(rig.backend.calls[2:]) == {frames}


def test_a_thread_that_dies_beside_another_is_told_too(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(batch_sizes=(1, 2), concurrency=2)
    rig.backend.hold()
    blocked, _ = rig.open()
    blocked.push(picture(0), 0)
    assert rig.backend.entered.wait(WAIT_S)
    rig.backend.fault = BackendError("The device is gone.", "a mask", "Restart.")
    rig.backend.gate.set()
    eventually(lambda: bool(rig.fatal))
    assert rig.fatal == [rig.backend.fault]


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
        picture(200), time.monotonic(), lambda segmented: segmented.canvas_mask_hw.tobytes()
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
