"""Where engines lie and when one is trusted: keys, hashes, records, writing. None of it needs a GPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service.backends.engine_cache import (
    BatchParity,
    EngineRecord,
    Machine,
    StoredEngine,
    default_engines_folder,
    find_engine,
    reason_against_engine,
    size_to_run,
    store_engine,
    timing_cache_path,
    write_atomically,
)
from service.contract.bundle import Bundle, open_bundle
from service.errors import BackendError

MACHINE = Machine("9.0", "10.16.1.11")
Store = Callable[..., StoredEngine]


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return open_bundle(small_bundle)


@pytest.fixture
def store(tmp_path: Path, bundle: Bundle) -> Store:
    def run(
        batch_sizes: tuple[int, ...] = (1, 2, 4), data: bytes = b"engine", **changes: object
    ) -> StoredEngine:
        fields = {
            "model_hash": bundle.model_hash,
            "precision": "float32",
            "compute_capability": MACHINE.compute_capability,
            "tensorrt": MACHINE.tensorrt,
            "batch_sizes": batch_sizes,
            "gpu": "A GPU",
            "driver_cuda": "13.1",
            "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data),
            "parity": (BatchParity(batch_size=1, frames=8, labels_equal=0.9999),),
        }
        return store_engine(tmp_path, EngineRecord.model_validate({**fields, **changes}), data)

    return run


def test_what_is_stored_is_found_and_read_whole(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    stored = store()
    found = find_engine(tmp_path, bundle, "float32", MACHINE, (1, 4))
    assert found == stored
    assert found.read() == b"engine"
    name = f"{bundle.model_hash[:16]}-float32-sm90-tensorrt10.16.1.11-batch1.2.4.engine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.json"]


def test_an_engine_is_stored_again_in_place_of_the_older(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    store()
    store(data=b"a newer engine")
    assert find_engine(tmp_path, bundle, "float32", MACHINE).read() == b"a newer engine"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_engine_with_the_least_padding_is_taken(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    for batch_sizes in [(16,), (1, 2, 4, 8), (1, 3, 8), (1,)]:
        store(batch_sizes)
    taken = {asked: find_engine(tmp_path, bundle, "float32", MACHINE, asked).record.batch_sizes
             for asked in [(1,), (1, 3), (1, 2), (9,)]}  # fmt: skip
    assert taken == {(1,): (1,), (1, 3): (1, 3, 8), (1, 2): (1, 2, 4, 8), (9,): (16,)}


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 4), (4, 4), (5, 16)])
def test_a_batch_runs_as_the_next_size(count: int, expected: int) -> None:
    assert size_to_run(count, (1, 4, 16)) == expected


@pytest.mark.parametrize(
    "machine",
    [Machine("8.6", "10.16.1.11"), Machine("9.0", "10.13.0.1"), Machine("9.0", "11.4.0.106")],
    ids=str,
)
def test_an_engine_of_another_machine_is_not_found_but_named(
    store: Store, bundle: Bundle, tmp_path: Path, machine: Machine
) -> None:
    stored = store()
    with pytest.raises(BackendError, match="no TensorRT engine of this bundle") as raised:
        find_engine(tmp_path, bundle, "float32", machine)
    assert str(machine) in raised.value.found
    assert stored.path.name in raised.value.found
    assert (
        f"surgseg-export build {bundle.folder} --runtime tensorrt --precision float32" in raised.value.remedy
    )


def test_an_engine_of_another_model_or_precision_is_not_found(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    store(model_hash="0" * 64)
    store(precision="float16")
    with pytest.raises(BackendError, match=r"\(of this model at this precision: none\)"):
        find_engine(tmp_path, bundle, "float32", MACHINE)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_hash": "0" * 64},
        {"compute_capability": "8.6"},
        {"tensorrt": "11.4.0.106"},
        {"precision": "int8"},
    ],
    ids=str,
)
def test_a_record_that_is_not_what_its_name_says_is_refused(
    store: Store, bundle: Bundle, tmp_path: Path, changes: dict[str, str]
) -> None:
    path = store().path
    record_path = path.with_name(f"{path.name}.json")
    record_path.write_text(json.dumps({**json.loads(record_path.read_text()), **changes}))
    with pytest.raises(BackendError, match=r"\.json is of model .* for compute capability .*Delete it"):
        find_engine(tmp_path, bundle, "float32", MACHINE)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "the file: Invalid JSON"),
        ("{}", "model_hash: Field required"),
        ('{"model_hash": "short"}', "model_hash"),
        ("[1]", "the file"),
    ],
)
def test_a_record_that_is_none_is_refused(
    store: Store, bundle: Bundle, tmp_path: Path, text: str, found: str
) -> None:
    path = store().path
    path.with_name(f"{path.name}.json").write_text(text)
    with pytest.raises(BackendError, match=f"is not the record of an engine: {found}"):
        find_engine(tmp_path, bundle, "float32", MACHINE)
    assert found in str(reason_against_engine(tmp_path, bundle, "float32", MACHINE))


def test_a_record_whose_batch_sizes_are_out_of_order_is_refused(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    store((4, 1))
    with pytest.raises(BackendError, match="batch sizes"):
        find_engine(tmp_path, bundle, "float32", MACHINE)


@pytest.mark.parametrize("damaged", [b"", b"engin", b"enginf", b"engine "], ids=repr)
def test_a_damaged_engine_is_refused(store: Store, damaged: bytes) -> None:
    stored = store()
    stored.path.write_bytes(damaged)
    with pytest.raises(BackendError, match=r"it is not the engine that was built\. Expected 6 bytes"):
        stored.read()


def test_an_engine_without_a_record_is_not_found_and_one_without_an_engine_says_so(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    stored = store()
    stored.path.unlink()
    with pytest.raises(BackendError, match=r"cannot be read \(No such file"):
        find_engine(tmp_path, bundle, "float32", MACHINE).read()
    stored.path.write_bytes(b"engine")
    stored.path.with_name(f"{stored.path.name}.json").unlink()
    assert "no TensorRT engine" in str(reason_against_engine(tmp_path, bundle, "float32", MACHINE))


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.backends.engine_cache.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_says_so_and_nothing_is_found(
    store: Store, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.backends.engine_cache.os.fsync", fail)
    with pytest.raises(BackendError, match=r"No space left on device.*--engines"):
        store()
    assert list(tmp_path.iterdir()) == []


def test_an_engine_whose_record_could_not_be_written_is_not_taken_for_the_older(
    store: Store, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store()
    calls = iter([None])

    def fail_later(handle: int) -> None:
        if next(calls, handle) is not None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.backends.engine_cache.os.fsync", fail_later)
    with pytest.raises(BackendError, match="No space"):
        store(data=b"a newer engine")
    assert "no TensorRT engine" in str(reason_against_engine(tmp_path, bundle, "float32", MACHINE))


def test_engines_lie_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_engines_folder() == tmp_path / ".cache" / "surgseg" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_engines_folder() == tmp_path / "cache" / "surgseg" / "engines"
    assert timing_cache_path(tmp_path, MACHINE).name == "timing-sm90-tensorrt10.16.1.11.cache"
