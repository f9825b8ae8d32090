"""The small parts of the pipeline, each for itself."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import open_bundle
from service.contract.geometry import plan_fit
from service.contract.model_card import InputSize
from service.errors import SurgsegError
from service.frames import DropReason, Frame, SegmentedFrame, Timeline
from service.pipeline.latest_frames import Mode
from service.pipeline.ledger import Ledger
from service.pipeline.subscription import Answer, Subscription
from service.pipeline.waiting_room import WaitingRoom
from service.pipeline.workers import Worker
from service.streams.pushed import LOSSLESS_PUSHES, PushedPicture, PushedPictures
from service.telemetry import Telemetry

WAIT_S = 20.0
_SIZE = InputSize(height=32, width=32)
_FIT = plan_fit(32, 32, _SIZE)
BUNDLE = open_bundle(DEFAULT_BUNDLE)


def make_frame(stream_id: str = "one", sequence: int = 1, deadline_at: float | None = None) -> Frame:
    canvas_hwc = np.zeros((32, 32, 3), np.uint8)
    return Frame(stream_id, sequence, canvas_hwc, _FIT, Timeline(0.0), deadline_at=deadline_at)


def make_answer(sequence: int) -> Answer:
    return Answer(SegmentedFrame(make_frame(sequence=sequence), np.zeros((32, 32), np.uint8), BUNDLE), b"")


def sample(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


@given(
    steps=st.lists(st.sampled_from(["receive", "segment", *DropReason]), max_size=40),
    closes_after=st.integers(0, 40),
)
def test_a_ledger_always_adds_up_and_settles_once(steps: list[str], closes_after: int) -> None:
    telemetry = Telemetry((1,))
    settled: list[int] = []
    ledger = Ledger(telemetry.meter_stream("1"), lambda: settled.append(1))
    is_closed = False
    for index, step in enumerate(steps):
        if index == closes_after:
            ledger.close()
            is_closed = True
        if step == "receive" and not is_closed:
            assert ledger.receive() == ledger.received
        elif step == "segment" and ledger.pending:
            ledger.segment(make_answer(1).segmented)
        elif isinstance(step, DropReason) and ledger.pending:
            ledger.drop(1, step)
        assert ledger.received == ledger.segmented + sum(ledger.dropped.values()) + ledger.pending
        assert settled == ([1] if is_closed and not ledger.pending else [])
    assert sample(telemetry, "surgseg_frames_received_total", stream="1") == ledger.received
    assert sample(telemetry, "surgseg_frames_segmented_total", stream="1") == ledger.segmented
    for reason, count in ledger.dropped.items():
        assert sample(telemetry, "surgseg_frames_dropped_total", stream="1", reason=reason) == count


def test_a_slot_that_is_used_again_goes_on_counting() -> None:
    telemetry = Telemetry((1,))
    for _ in range(2):
        ledger = Ledger(telemetry.meter_stream("1"), lambda: None)
        ledger.receive()
        ledger.drop(1, DropReason.CLOSED)
        assert sample(telemetry, "surgseg_stream_fps", stream="1") == 0.0
        ledger.close()
        assert sample(telemetry, "surgseg_stream_fps", stream="1") is None
    assert sample(telemetry, "surgseg_frames_received_total", stream="1") == 2


def test_fps_counts_the_masks_of_the_last_seconds_and_falls_to_zero() -> None:
    telemetry = Telemetry((1,))
    meter = telemetry.meter_stream("1")
    now = time.monotonic()
    for age_s in (10.0, 3.0, 0.4, 0.3, 0.2, 0.1):
        meter.count_segmented(Timeline(now - age_s))
    assert sample(telemetry, "surgseg_stream_fps", stream="1") == 2.0


@given(put=st.lists(st.booleans(), max_size=30))
def test_a_live_mailbox_keeps_the_newest_and_counts_the_rest(put: list[bool]) -> None:
    skipped: list[int] = []
    mailbox = Subscription(
        "png", Mode.LATEST, BUNDLE, notify=lambda: None, on_skipped=lambda: skipped.append(1)
    )
    sequence = taken = 0
    for is_put in put:
        if is_put:
            sequence += 1
            mailbox.put(make_answer(sequence), pytest.fail)
        elif (answer := mailbox.take()) is not None:
            taken += 1
            assert answer.segmented.frame.sequence == sequence
        assert len(mailbox) <= 1
        assert sequence == taken + mailbox.skipped + len(mailbox)
    assert len(skipped) == mailbox.skipped


def test_a_lossless_mailbox_keeps_all_in_order_and_tells_of_each_one_taken() -> None:
    taken: list[int] = []
    mailbox = Subscription("png", Mode.EVERY, BUNDLE, notify=lambda: None, on_skipped=pytest.fail)
    for sequence in range(5):
        mailbox.put(make_answer(sequence), lambda: taken.append(1))
    answers = [mailbox.take() for _ in range(5)]
    assert [answer.segmented.frame.sequence for answer in answers if answer] == list(range(5))
    assert mailbox.take() is None
    assert len(taken) == 5


def test_a_lossless_mailbox_that_is_closed_lets_go_of_what_was_left_and_of_what_still_comes() -> None:
    let_go: list[int] = []
    told: list[int] = []
    mailbox = Subscription("png", Mode.EVERY, BUNDLE, notify=lambda: told.append(1), on_skipped=pytest.fail)
    mailbox.put(make_answer(1), lambda: let_go.append(1))
    mailbox.close()
    mailbox.put(make_answer(2), lambda: let_go.append(2))
    mailbox.close()
    assert let_go == [1, 2]
    assert told == [1]
    assert mailbox.take() is None


def test_an_offer_to_a_full_lossless_stream_waits_until_one_is_finished() -> None:
    room = WaitingRoom(time.monotonic)
    room.add_stream("one", Mode.EVERY, capacity=1)
    room.offer(make_frame(sequence=1))
    offered = threading.Event()
    offerer = threading.Thread(target=lambda: (room.offer(make_frame(sequence=2)), offered.set()))
    offerer.start()
    taken = room.take(1, 0.0)
    assert taken is not None
    assert [frame.sequence for frame in taken.frames] == [1]
    assert not offered.wait(0.1), "its mask has not been handed over yet"
    room.finish("one")
    assert offered.wait(WAIT_S)
    offerer.join(WAIT_S)


def test_closing_a_stream_frees_a_reader_that_waits_for_room() -> None:
    room = WaitingRoom(time.monotonic)
    room.add_stream("one", Mode.EVERY, capacity=1)
    room.offer(make_frame(sequence=1))
    drops: list[object] = []
    offerer = threading.Thread(target=lambda: drops.append(room.offer(make_frame(sequence=2))))
    offerer.start()
    time.sleep(0.05)
    assert [drop.frame.sequence for drop in room.remove_stream("one")] == [1]
    offerer.join(WAIT_S)
    (drop,) = drops
    assert drop is not None
    assert drop.reason is DropReason.CLOSED


def test_an_expired_lossless_frame_makes_room() -> None:
    room = WaitingRoom(time.monotonic)
    room.add_stream("one", Mode.EVERY, capacity=1)
    room.offer(make_frame(sequence=1, deadline_at=time.monotonic() - 1))
    offerer = threading.Thread(target=room.offer, args=(make_frame(sequence=2),))
    offerer.start()
    taken = room.take(1, WAIT_S)
    assert taken is not None
    assert [drop.reason for drop in taken.drops] == [DropReason.DEADLINE]
    offerer.join(WAIT_S)
    assert not offerer.is_alive()


def test_taking_from_an_empty_room_ends_with_the_time_or_the_room() -> None:
    room = WaitingRoom(time.monotonic)
    taken = room.take(1, 0.01)
    assert taken is not None
    assert taken.frames == taken.drops == ()
    threading.Timer(0.05, room.close).start()
    assert room.take(1, WAIT_S) is None


def test_a_worker_tells_of_the_error_that_ends_it() -> None:
    errors: list[BaseException] = []
    fault = RuntimeError("out of ideas")

    def work() -> None:
        raise fault

    worker = Worker("worker", work, errors.append)
    assert worker.join(0.0), "it was never started"
    worker.start()
    assert worker.join(WAIT_S)
    assert errors == [fault]


def pushed(sequence: int, data: bytes) -> PushedPicture:
    return PushedPicture(sequence, sequence * 10, float(sequence), data)


def make_source(*, is_lossless: bool) -> tuple[PushedPictures, list[int], list[int]]:
    refused: list[int] = []
    rooms: list[int] = []

    def refuse(picture: PushedPicture, error: SurgsegError) -> None:
        refused.append(picture.sequence)

    source = PushedPictures(
        codec="png",
        input_size=InputSize(height=32, width=64),
        fit_rule="letterbox",
        max_pixels=100,
        is_lossless=is_lossless,
        on_undecodable=refuse,
        on_room=lambda: rooms.append(1),
    )
    return source, refused, rooms


def test_pushed_pictures_become_frames_that_know_where_they_came_from() -> None:
    source, refused, _ = make_source(is_lossless=False)
    frames = source.frames()
    good = cv2.imencode(".png", np.full((5, 6, 3), 9, np.uint8))[1].tobytes()
    large = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    assert source.push(pushed(1, good)) is None
    frame = next(frames)
    assert (frame.sequence, frame.captured_at_us, frame.arrived_at) == (1, 10, 1.0)
    assert frame.canvas_hwc.shape == (32, 64, 3)
    assert (frame.fit.source_height, frame.fit.source_width) == (5, 6)
    assert 1.0 < frame.decoded_at <= frame.prepared_at
    for sequence, data in enumerate([b"bad", large], start=2):
        source.push(pushed(sequence, data))
        threading.Timer(0.05, source.push, (pushed(sequence + 10, good),)).start()
        assert next(frames).sequence == sequence + 10
    assert refused == [2, 3]
    source.close()
    assert list(frames) == []


def test_a_newer_picture_takes_the_place_of_one_that_waits() -> None:
    source, _, _ = make_source(is_lossless=False)
    source.push(pushed(1, b"a"))
    superseded = source.push(pushed(2, b"b"))
    assert superseded is not None
    assert superseded.sequence == 1
    source.close()
    assert [picture.sequence for picture in source.unread()] == [2]
    assert source.unread() == ()
    late = pushed(3, b"c")
    assert source.push(late) is late


def test_a_lossless_source_refuses_more_than_its_share_until_it_says_there_is_room() -> None:
    source, _, rooms = make_source(is_lossless=True)
    good = cv2.imencode(".png", np.zeros((5, 6, 3), np.uint8))[1].tobytes()
    for sequence in range(1, LOSSLESS_PUSHES + 1):
        source.push(pushed(sequence, good))
    with pytest.raises(BufferError):
        source.push(pushed(9, good))
    frames = source.frames()
    assert next(frames).sequence == 1
    assert rooms == [1]
    source.push(pushed(9, good))
    assert [next(frames).sequence for _ in range(LOSSLESS_PUSHES)] == [*range(2, LOSSLESS_PUSHES + 1), 9]
