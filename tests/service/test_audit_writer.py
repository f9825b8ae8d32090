"""The files of an audit record: when one ends, what the next begins with, what is deleted, and who may read them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audit.entries import ClosedEntry, DropEntry, Entry, ModelEntry, OpenedEntry
from service.audit.folder import AppendedFile, RecordFolder
from service.audit.record import Fault, Record
from service.audit.shelf import Cause, KeepRules, RecordFile, choose_deletions, name_file, read_number
from service.audit.writer import RecordWriter
from service.contract.model_card import ClassInfo
from service.errors import DataError, InvalidRequestError

DAY_S = 86_400.0
AT = datetime(2026, 1, 18, tzinfo=UTC)
MODEL = ModelEntry(
    at=AT, fingerprint="f" * 64, name="m", version="1", backend="b", precision="int8", runtime_version="1",
    sha256="s", classes=(ClassInfo(id=0, name="background", colour=(0, 0, 0)),),
)  # fmt: skip


def opened(stream: str) -> OpenedEntry:
    return OpenedEntry(at=AT, stream=stream, name="", origin="pushed", codec="png", mode="every")


def drops(*sequences: int) -> list[Entry]:
    return [DropEntry(at=AT, stream="one", sequence=number, reason="superseded") for number in sequences]


def sequences(record: Record) -> list[int]:
    return [entry.sequence for _, entry in record.entries() if isinstance(entry, DropEntry)]


class Clock:
    def __init__(self) -> None:
        self.now = AT.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def begin(tmp_path: Path, clock: Clock) -> Callable[..., RecordWriter]:
    """A function that begins to write to `audit`, with `deleted` causes."""

    def begin_it(**rules: float) -> RecordWriter:
        kept = {"keep_s": 90 * DAY_S, "max_bytes": 2**30, "file_bytes": 2**20, **rules}
        deleted: list[Cause] = []
        writer = RecordWriter(
            RecordFolder(tmp_path / "audit"), KeepRules(**kept), clock=clock, on_deleted=deleted.append
        )
        writer.deleted = deleted
        return writer

    return begin_it


def test_every_file_can_be_read_without_those_before_it(
    begin: Callable[..., RecordWriter], tmp_path: Path
) -> None:
    writer = begin(file_bytes=1)
    writer.write([MODEL, opened("one"), opened("two"), *drops(1)])
    writer.write([ClosedEntry(at=AT, stream="two", received=0, segmented=0, dropped={}), *drops(2)])
    writer.write(drops(3))
    writer.close()
    files = sorted((tmp_path / "audit").glob("*.gz"))
    assert len(files) == 3
    last = [entry for _, entry in Record(files[2]).entries()]
    assert last == [MODEL, opened("one"), *drops(3)]
    whole = Record(tmp_path / "audit")
    assert (sequences(whole), whole.problems, whole.blocks) == ([1, 2, 3], [], 3)


def test_only_the_owner_may_read_a_record(begin: Callable[..., RecordWriter], tmp_path: Path) -> None:
    begin().write(drops(1))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "audit").iterdir()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700


def test_a_day_ends_a_file_and_files_past_their_time_go_also_when_nothing_is_written(
    begin: Callable[..., RecordWriter], tmp_path: Path, clock: Clock
) -> None:
    writer = begin(keep_s=10 * DAY_S)
    (tmp_path / "audit" / "notes.txt").write_text("not ours")
    for number in range(3):
        writer.write(drops(number))
        clock.now += DAY_S
    assert len(list((tmp_path / "audit").glob("*.gz"))) == 3
    clock.now += 8.5 * DAY_S
    writer.tidy()
    assert writer.deleted == [Cause.AGE, Cause.AGE]
    assert sequences(Record(tmp_path / "audit")) == [2]
    assert (tmp_path / "audit" / "notes.txt").exists()


def test_a_record_never_grows_beyond_its_cap_and_loses_its_oldest_part(
    begin: Callable[..., RecordWriter], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = begin(max_bytes=4000, file_bytes=1000)
    for number in range(1, 61):
        writer.write(drops(number))
        assert sum(file.stat().st_size for file in (tmp_path / "audit").glob("*.gz")) <= 4000
    left = Record(tmp_path / "audit")
    kept = sequences(left)
    assert kept == list(range(kept[0], 61))
    assert 1 < kept[0] < 60
    assert left.problems == []
    assert set(writer.deleted) == {Cause.SIZE}
    assert "is deleted because of its size" in caplog.text


def test_the_next_run_goes_on_with_the_chain_behind_what_a_kill_left(
    begin: Callable[..., RecordWriter], tmp_path: Path
) -> None:
    first = begin()
    for number in (1, 2, 3):
        first.write(drops(number))
    first._folder.close()  # killed
    (file,) = (tmp_path / "audit").glob("*.gz")
    file.write_bytes(file.read_bytes()[:-5])
    second = begin()
    second.write(drops(4))
    second.close()
    record = Record(tmp_path / "audit")
    assert sequences(record) == [1, 2, 4]
    assert [problem.fault for problem in record.problems] == [Fault.CUT]


def test_a_block_taken_out_or_exchanged_is_noticed(
    begin: Callable[..., RecordWriter], tmp_path: Path
) -> None:
    writer, sizes = begin(), [0]
    for number in (1, 2, 3):
        sizes.append(sizes[-1] + writer.write(drops(number)))
    writer.close()
    (file,) = (tmp_path / "audit").glob("*.gz")
    data = file.read_bytes()
    parts = [data[start:end] for start, end in pairwise(sizes)]
    for forged in ((0, 2), (1, 0, 2), (0, 1, 0, 2)):
        file.write_bytes(b"".join(parts[index] for index in forged))
        record = Record(tmp_path / "audit")
        list(record.entries())
        assert Fault.BROKEN in {problem.fault for problem in record.problems}, forged


def test_two_services_never_write_to_one_folder(begin: Callable[..., RecordWriter]) -> None:
    writer = begin()
    with pytest.raises(InvalidRequestError, match="another service"):
        begin()
    writer.close()
    begin().close()


def test_what_the_disk_refused_is_written_once_when_it_takes_it_again(
    begin: Callable[..., RecordWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin()
    writer.write(drops(1))
    append = AppendedFile.append

    def fail(file: AppendedFile, data: bytes) -> None:
        os.write(file._fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AppendedFile, "append", fail)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            writer.write(drops(2))
    monkeypatch.setattr(AppendedFile, "append", append)
    writer.write(drops(2), lost=7)
    writer.close()
    record = Record(tmp_path / "audit")
    assert (sequences(record), record.problems, record.lost) == ([1, 2], [], 7)
    assert record.files == 2, "no empty files are left behind"


def test_a_folder_that_cannot_be_had_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequestError, match="SURGSEG_AUDIT") as raised:
        RecordFolder(tmp_path / "file")
    assert "cannot be written to" in raised.value.found


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8b\x08\x00" + bytes(40)])
def test_a_file_that_is_no_record_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no whole block"):
        list(Record(path).entries())
    for absent in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError):
            Record(absent)


@given(
    files=st.lists(st.tuples(st.integers(0, 500), st.floats(0, 100)), max_size=8),
    max_bytes=st.integers(0, 2000),
    other_bytes=st.integers(0, 300),
)
def test_what_is_kept_is_young_and_fits_and_nothing_goes_without_need(
    files: list[tuple[int, float]], max_bytes: int, other_bytes: int
) -> None:
    shelf = [RecordFile(Path(str(n)), n, size, age) for n, (size, age) in enumerate(files)]
    rules = KeepRules(keep_s=50.0, max_bytes=max_bytes, file_bytes=100)
    chosen = choose_deletions(shelf, rules, now=100.0, other_bytes=other_bytes)
    gone = [file for file, _ in chosen]
    kept = [file for file in shelf if file not in gone]
    assert all(100.0 - file.written_at <= 50.0 for file in kept)
    assert not kept or other_bytes + sum(file.size_bytes for file in kept) <= max_bytes
    for_size = [file for file, cause in chosen if cause is Cause.SIZE]
    assert all(file.number < min(one.number for one in kept) for file in for_size if kept)
    for file, cause in chosen:
        later = sum(one.size_bytes for one in shelf if one.number >= file.number)
        assert cause is Cause.AGE or other_bytes + later > max_bytes


def test_names_sort_in_the_order_of_writing_whatever_the_clock_did() -> None:
    names = [name_file(9, 2e9), name_file(10, 1e9), name_file(11, 1.5e9)]
    assert sorted(names) == names
    assert [read_number(name) for name in (*names, "audit-1.jsonl.gz", "x")] == [9, 10, 11, None, None]
