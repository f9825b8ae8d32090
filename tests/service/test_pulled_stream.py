"""Pulled streams in a real pipeline, from real files: viewers hold back a lossless one, and only that one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.contract.bundle import open_bundle
from service.contract.masks import MaskFormat, decode_mask
from service.errors import SurgsegError, UnavailableError
from service.pipeline.latest_frames import Mode
from service.pipeline.pulled_stream import PulledStream, ViewerCallbacks
from service.pipeline.stream_terms import StreamTerms
from service.pipeline.subscription import Subscription
from service.streams.decoder_sources import Pacer
from service.streams.pull_targets import PullRules
from service.streams.restarts import Restarts
from tests.bitstreams import read_code
from tests.service.pipeline_rig import Rig, eventually, running_rigs
from tests.sources import write_codes

COUNT = 60


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> PullRules:
    folder = tmp_path_factory.mktemp("videos")
    write_codes(folder / "codes.mp4", range(COUNT))
    return PullRules((), (), folder)


@pytest.fixture
def make_rig(small_bundle: Path) -> Iterator[Callable[..., Rig]]:
    with running_rigs(open_bundle(small_bundle)) as make:
        yield make


def pull(rig: Rig, rules: PullRules, mode: Mode = Mode.EVERY, **options: Any) -> PulledStream:
    eventually(rig.pipeline.is_ready)
    target = rules.admit("file:codes.mp4", "tcp")
    return rig.pipeline.open_pulled(target, StreamTerms(mode), **options)


def watch(
    stream: PulledStream, mask_format: MaskFormat = "png", ends: list[Any] | None = None
) -> Subscription:
    told = [] if ends is None else ends
    return stream.watch(mask_format, ViewerCallbacks(lambda: None, lambda *_: None, told.append))


def drain(mailbox: Subscription, codes: list[int]) -> None:
    while (answer := mailbox.take()) is not None:
        codes.append(read_code(decode_mask(answer.payload, mailbox.mask_format)))


def test_the_slowest_viewer_of_a_lossless_stream_sets_its_pace_and_frees_it_when_it_leaves(
    make_rig: Callable[..., Rig], rules: PullRules
) -> None:
    rig = make_rig(every_depth=3)
    stream = pull(rig, rules)
    other = pull(rig, rules)
    ends: list[SurgsegError | None] = []
    quick, slow, others = watch(stream, "png", ends), watch(stream, "rle"), watch(other)
    seen: list[int] = []
    seen_by_others: list[int] = []

    def is_held() -> bool:
        drain(quick, seen)
        drain(others, seen_by_others)
        return len(seen_by_others) == COUNT

    eventually(is_held)
    assert seen == list(range(3)), "the slow viewer holds three places, and no other stream noticed"
    assert len(slow) == 3
    slow_seen: list[int] = []
    drain(slow, slow_seen)
    assert slow_seen[:3] == seen, "and the place of each that is taken is filled again, maybe at once"
    assert slow_seen == list(range(len(slow_seen)))
    eventually(lambda: len(quick) == 3)  # which nobody reads now, so it holds the places too
    stream.unsubscribe(slow)
    assert stream.viewers == 1
    eventually(lambda: (drain(quick, seen), len(seen) == COUNT)[1])
    assert seen == list(range(COUNT))
    eventually(lambda: ends == [None])
    assert stream.state == ("ended", "")
    assert stream.ledger.segmented == stream.ledger.received == COUNT


def test_a_lossless_stream_stands_still_while_nobody_watches(
    make_rig: Callable[..., Rig], rules: PullRules
) -> None:
    rig = make_rig()
    stream = pull(rig, rules)
    eventually(lambda: stream.ledger.received > 0)
    assert stream.ledger.segmented == 0
    first = watch(stream)
    eventually(lambda: len(first) > 0)
    seen: list[int] = []
    drain(first, seen)
    stream.unsubscribe(first)
    second = watch(stream)
    rest: list[int] = []
    eventually(lambda: (drain(second, rest), rest[-1:] == [COUNT - 1])[1])
    assert rest == sorted(set(rest))
    assert seen[0] == 0
    assert not set(seen) & set(rest)


def test_a_live_stream_runs_without_viewers_and_an_ended_one_gives_up_its_place(
    make_rig: Callable[..., Rig], rules: PullRules
) -> None:
    rig = make_rig(max_streams=1)
    stream = pull(rig, rules, Mode.LATEST)
    with pytest.raises(UnavailableError, match="1 streams are open"):
        pull(rig, rules)
    eventually(lambda: stream.is_over)
    eventually(lambda: stream.ledger.pending == 0)
    assert stream.ledger.segmented > 0
    assert stream.picture_size == (320, 192)
    assert rig.pipeline.streams() == (stream,)
    again = pull(rig, rules)
    assert rig.pipeline.streams() == (again,)
    assert (again.label, stream.label) == ("1", "1")


def test_viewers_are_bounded_told_of_the_end_and_may_come_too_late(
    make_rig: Callable[..., Rig], rules: PullRules
) -> None:
    rig = make_rig(max_viewers=1)
    stream = pull(rig, rules, Mode.LATEST, is_looped=True)
    ends: list[SurgsegError | None] = []
    viewer = watch(stream, "png", ends)
    with pytest.raises(UnavailableError, match="1 viewers"):
        watch(stream)
    stream.unsubscribe(viewer)
    viewer = watch(stream, "rle", ends)
    eventually(lambda: len(viewer) == 1)
    stream.close()
    assert ends == [None]
    assert viewer.take() is None
    late: list[SurgsegError | None] = []
    watch(stream, "png", late)
    assert late == [None]
    assert rig.pipeline.streams() == ()
    assert stream.ledger.received == stream.ledger.segmented + sum(stream.ledger.dropped.values())


def test_draining_answers_what_was_fetched_and_waits_for_the_viewers(
    make_rig: Callable[..., Rig], rules: PullRules
) -> None:
    rig = make_rig()
    watched, alone = (pull(rig, rules, Mode.LATEST, is_looped=True) for _ in range(2))
    viewer = watch(watched)
    eventually(lambda: len(viewer) == 1 and alone.ledger.segmented > 0)
    rig.pipeline.drain_pulled()
    eventually(lambda: rig.pipeline.streams() == (watched,))
    eventually(lambda: watched.ledger.pending == 0)
    assert viewer.take() is not None
    watched.unsubscribe(viewer)
    eventually(lambda: rig.pipeline.streams() == ())
    assert [one for one in threading.enumerate() if one.name.startswith("surgseg-reader")] == []


def test_a_patient_source_is_tried_for_ever_at_the_longest_pause() -> None:
    restarts = Restarts(2, 0.5, 4.0, 30.0)
    assert [restarts.fail(0.0, is_patient=True) for _ in range(5)] == [0.5, 1.0, 4.0, 4.0, 4.0]
    assert restarts.fail(0.0) is None
    assert restarts.fail(31.0) == 0.5


def test_a_file_is_paced_by_its_stamps_and_begins_anew_where_they_run_back() -> None:
    now = 100.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    pacer = Pacer(lambda: now, sleep)
    due = []
    for stamp_s in (7.0, 7.04, 7.08, 8.3, 0.0, 0.04):
        pacer.wait(stamp_s)
        due.append(round(now - 100.0, 6))
    assert due == [0.0, 0.04, 0.08, 1.3, 1.3, 1.34]
    assert max(slept) <= 0.5
    now += 10.0
    pacer.wait(0.08)
    assert round(now - 100.0, 6) == 11.34, "what is late is not slept for"
