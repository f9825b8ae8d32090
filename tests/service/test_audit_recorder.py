"""The audit record of a real pipeline: every frame's end is in it, or counted as lost; nobody waits for the disk."""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.audit import scribe
from service.audit.entries import ClosedEntry, DropEntry, Entry, MaskEntry, ModelEntry, OpenedEntry
from service.audit.folder import AppendedFile
from service.audit.intake import Intake
from service.audit.meter import AuditMeter
from service.audit.record import Record
from service.audit.recorder import AuditRecorder
from service.audit.shelf import KeepRules
from service.contract.bundle import Bundle, open_bundle
from service.contract.masks import from_png
from service.errors import UnavailableError
from service.pipeline.latest_frames import Mode
from tests.service.pipeline_rig import WAIT_S, Rig, eventually, picture, running_rigs

RULES = KeepRules(keep_s=1e6, max_bytes=2**30, file_bytes=2**20)


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return open_bundle(small_bundle)


@pytest.fixture
def make_rig(bundle: Bundle) -> Iterator[Callable[..., Rig]]:
    with running_rigs(bundle) as make:
        yield make


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def begin(tmp_path: Path, registry: CollectorRegistry) -> Callable[..., AuditRecorder]:
    def begin_it(is_strict: bool = False, intake: Intake | None = None) -> AuditRecorder:
        meter = AuditMeter(registry)
        return AuditRecorder(tmp_path / "audit", RULES, meter, is_strict=is_strict, intake=intake)

    return begin_it


@pytest.fixture
def refusing_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, the disk is full."""
    is_full, append = threading.Event(), AppendedFile.append

    def append_or_fail(file: AppendedFile, data: bytes) -> None:
        if is_full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, data)

    monkeypatch.setattr(AppendedFile, "append", append_or_fail)
    monkeypatch.setattr(scribe, "_RETRY_S", 0.01)
    monkeypatch.setattr(scribe, "_BLOCK_S", 0.02)
    return is_full


def read(folder: Path) -> list[Entry]:
    record = Record(folder / "audit")
    entries = [entry for _, entry in record.entries()]
    assert record.problems == []
    return entries


def test_every_frame_is_in_the_record_with_its_mask_or_its_cause(
    make_rig: Callable[..., Rig], begin: Callable[..., AuditRecorder], bundle: Bundle, tmp_path: Path
) -> None:
    recorder = begin()
    recorder.start()
    rig = make_rig(journal=recorder)
    stream, mailbox = rig.open()
    rig.backend.hold()
    stream.push(picture(200), 11)
    assert rig.backend.entered.wait(WAIT_S)
    for data in (picture(10), b"no picture", picture(20)):
        stream.push(data, 12)
        eventually(lambda: stream.source._waiting == type(stream.source._waiting)())
    rig.backend.gate.set()
    eventually(lambda: stream.ledger.segmented == 2)
    shown_hw = from_png(mailbox.take().payload)  # type: ignore[union-attr]
    stream.close()
    eventually(lambda: stream.ledger.pending == 0)
    assert recorder.stop(WAIT_S)

    entries = read(tmp_path)
    masks = [entry for entry in entries if isinstance(entry, MaskEntry)]
    drops = [entry for entry in entries if isinstance(entry, DropEntry)]
    assert [(mask.sequence, mask.captured_at_us) for mask in masks] == [(1, 11), (4, 12)]
    assert {(drop.sequence, drop.reason) for drop in drops} == {(2, "superseded"), (3, "undecodable")}
    assert np.array_equal(masks[-1].mask_hw, shown_hw)
    assert masks[0].mask_hw.mean() == 1
    assert {(mask.stream, mask.model) for mask in masks} == {(stream.id, bundle.fingerprint)}
    assert list(masks[0].latency_ms) == ["decode", "prepare", "wait", "infer", "encode"]
    assert (masks[0].width, masks[0].height) == (32, 18)
    assert abs(masks[0].at.timestamp() - time.time()) < WAIT_S
    (closed,) = [entry for entry in entries if isinstance(entry, ClosedEntry)]
    counted = Counter(drop.reason for drop in drops)
    assert (closed.received, closed.segmented, closed.dropped) == (4, 2, counted)
    (model,) = [entry for entry in entries if isinstance(entry, ModelEntry)]
    assert (model.fingerprint, model.classes) == (bundle.fingerprint, tuple(bundle.card.classes))
    (told,) = [entry for entry in entries if isinstance(entry, OpenedEntry)]
    assert (told.origin, told.codec, told.mode) == ("pushed", "png", "latest")


def test_posted_pictures_are_a_stream_of_their_own(
    make_rig: Callable[..., Rig], begin: Callable[..., AuditRecorder], tmp_path: Path
) -> None:
    recorder = begin()
    recorder.start()
    rig = make_rig(journal=recorder)
    rig.pipeline.images.segment(picture(200), time.monotonic(), lambda segmented: b"")
    with pytest.raises(Exception, match="picture"):
        rig.pipeline.images.segment(b"none", time.monotonic(), lambda segmented: b"")
    assert recorder.stop(WAIT_S)
    ends = [entry for entry in read(tmp_path) if isinstance(entry, MaskEntry | DropEntry)]
    assert [(entry.stream, entry.kind, entry.sequence) for entry in ends] == [
        ("images", "mask", 1), ("images", "drop", 2),
    ]  # fmt: skip


def test_a_writer_that_is_behind_costs_entries_that_are_counted_and_no_frame(
    make_rig: Callable[..., Rig],
    begin: Callable[..., AuditRecorder],
    registry: CollectorRegistry,
    tmp_path: Path,
) -> None:
    """The writer has not even been started: nothing may wait for it."""
    recorder = begin(intake=Intake(max_drafts=1000, max_bytes=3 * 288 * 512))
    rig = make_rig(journal=recorder)
    stream, mailbox = rig.open(Mode.EVERY)
    for number in range(8):
        rig.push_lossless(stream, picture(200), number)
        eventually(lambda: mailbox.take() is not None)
    assert stream.ledger.segmented == 8
    recorder.start()
    assert recorder.stop(WAIT_S)
    record = Record(tmp_path / "audit")
    kept = [entry.sequence for _, entry in record.entries() if isinstance(entry, MaskEntry)]
    assert (kept, record.lost) == ([1, 2, 3], 5)
    assert registry.get_sample_value("surgseg_audit_lost_total") == 5
    assert registry.get_sample_value("surgseg_audit_entries_total") == 2 + 3, "the model, the stream"


@pytest.mark.parametrize("is_strict", [True, False])
def test_a_full_disk_is_seen_streams_go_on_and_only_a_strict_service_takes_no_new_ones(
    make_rig: Callable[..., Rig],
    begin: Callable[..., AuditRecorder],
    registry: CollectorRegistry,
    refusing_disk: threading.Event,
    tmp_path: Path,
    is_strict: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def is_failing() -> bool:
        return registry.get_sample_value("surgseg_audit_failing") == 1

    recorder = begin(is_strict)
    recorder.start()
    rig = make_rig(journal=recorder)
    stream, mailbox = rig.open(Mode.EVERY)
    refusing_disk.set()
    rig.push_lossless(stream, picture(200), 1)
    eventually(lambda: mailbox.take() is not None)
    eventually(is_failing)
    rig.push_lossless(stream, picture(200), 2)
    eventually(lambda: mailbox.take() is not None)
    assert rig.pipeline.is_ready() is not is_strict
    if is_strict:
        with pytest.raises(UnavailableError, match="audit record cannot be written"):
            rig.pipeline.check_open()
    refusing_disk.clear()
    eventually(lambda: not is_failing())
    assert rig.pipeline.is_ready()
    assert recorder.stop(WAIT_S)
    assert [entry.sequence for entry in read(tmp_path) if isinstance(entry, MaskEntry)] == [1, 2]
    assert caplog.text.count("cannot be written (No space left on device)") == 1
    assert "is written again; 0 entries were lost" in caplog.text


def test_a_service_that_ends_while_the_disk_is_full_ends_and_says_what_is_lost(
    begin: Callable[..., AuditRecorder],
    registry: CollectorRegistry,
    refusing_disk: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = begin()
    refusing_disk.set()
    recorder.follow("one").end(0, 0, {})
    recorder.start()
    eventually(lambda: "cannot be written" in caplog.text)
    assert recorder.stop(WAIT_S)
    assert "The last 1 entries are lost" in caplog.text
    assert registry.get_sample_value("surgseg_audit_lost_total") == 1


def test_a_writer_that_dies_of_a_defect_is_seen(
    begin: Callable[..., AuditRecorder],
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = begin(is_strict=True)
    monkeypatch.setattr("service.audit.writer.pack_block", lambda head, lines: 1 / 0)
    recorder.follow("one").end(0, 0, {})
    recorder.start()
    eventually(lambda: recorder.refusal is not None)
    assert "ZeroDivisionError" in caplog.text
    assert registry.get_sample_value("surgseg_audit_failing") == 1
    recorder.follow("two").end(0, 0, {})
    assert registry.get_sample_value("surgseg_audit_lost_total") == 2


def test_what_waits_to_be_written_is_bounded_in_number_too() -> None:
    intake = Intake(max_drafts=3)
    assert [intake.put(pytest.fail) for _ in range(5)] == [True, True, True, False, False]
    assert (intake.take_lost(), intake.take_lost()) == (2, 0)
    intake.close()
    assert not intake.put(pytest.fail)
    assert [intake.take(0) is not None for _ in range(4)] == [True, True, True, False]
    assert intake.is_over
