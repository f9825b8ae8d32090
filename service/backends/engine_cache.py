"""Where TensorRT engines lie, and when one is trusted. Nothing here needs a GPU or TensorRT.

An engine is a program: it runs on the kind of GPU and the version of TensorRT it was built with, and it may carry code.
So none is ever read from a bundle. Each lies in a folder of this machine as two files: the engine, and beside it a
record with its SHA-256, what it was built from and for, and what was measured before it was accepted.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract.bundle import Bundle
from service.contract.model_card import Precision, Share
from service.errors import BackendError

_ENGINE, _RECORD = ".engine", ".json"
_HASH_LENGTH = 16
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
BatchSize = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class Machine:
    """What an engine is tied to: the GPU's compute capability, as 9.0, and the version of TensorRT."""

    compute_capability: str
    tensorrt: str

    def __str__(self) -> str:
        return f"compute capability {self.compute_capability}, TensorRT {self.tensorrt}"


class BatchParity(BaseModel):
    """What an engine gave at a batch size, compared with the network on so many `frames`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: BatchSize
    frames: Annotated[int, Field(ge=1)]
    labels_equal: Share
    confidences_equal: Share | None = None


class EngineRecord(BaseModel):
    """What lies beside an engine. Up to `batch_sizes` it is its key; `gpu` and `driver_cuda` are for people."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_hash: Sha256
    precision: Precision
    compute_capability: str = Field(pattern=r"^[0-9]+\.[0-9]+$")
    tensorrt: str = Field(pattern=r"^[0-9a-z.+]+$")
    batch_sizes: tuple[BatchSize, ...] = Field(min_length=1)
    gpu: str
    driver_cuda: str
    sha256: Sha256
    size_bytes: int
    parity: tuple[BatchParity, ...] = ()

    @property
    def machine(self) -> Machine:
        return Machine(self.compute_capability, self.tensorrt)

    @property
    def engine_name(self) -> str:
        """The name of the engine's file: its key."""
        sizes = ".".join(map(str, self.batch_sizes))
        return f"{_name_start(self.model_hash, self.precision, self.machine)}-batch{sizes}{_ENGINE}"


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine in the folder, and its record."""

    path: Path
    record: EngineRecord

    def read(self) -> bytes:
        """The engine itself, once its hash has been compared. Raises BackendError."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            _refuse(self.path, f"cannot be read ({error.strerror or error})", "an engine beside its record")
        found = hashlib.sha256(data).hexdigest()
        if found != self.record.sha256:
            _refuse(
                self.path,
                f"has {len(data)} bytes and SHA-256 {found[:12]}…: it is not the engine that was built",
                f"{self.record.size_bytes} bytes and {self.record.sha256[:12]}…",
            )
        return data


class EngineKeeper:
    """A backend that keeps engines in a folder of this machine: the user's cache, or the one of `kept_in`."""

    engines_folder: ClassVar[Path | None] = None

    @classmethod
    def kept_in(cls, folder: Path) -> type[Self]:
        """The same backend with its engines in another folder."""
        return type(cls.__name__, (cls,), {"engines_folder": folder})

    @classmethod
    def folder(cls) -> Path:
        """Where this backend's engines lie."""
        return cls.engines_folder or default_engines_folder()


def default_engines_folder() -> Path:
    """The user's cache: `~/.cache/surgseg/engines`, elsewhere where XDG_CACHE_HOME says so."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "surgseg" / "engines"


def find_engine(
    folder: Path, bundle: Bundle, precision: Precision, machine: Machine, batch_sizes: Sequence[int] = (1,)
) -> StoredEngine:
    """The engine of a bundle for this machine that runs these batch sizes with the least padding.

    Raises BackendError that names the command that builds one where there is none, or where a record is not what its
    name says.
    """
    model_hash = bundle.hash_of(precision)
    start = _name_start(model_hash, precision, machine)
    suited = []
    for path in sorted(folder.glob(f"{start}-batch*{_ENGINE}{_RECORD}")):
        record = _read_record(path)
        if (record.model_hash, record.precision, record.machine) != (model_hash, precision, machine):
            _refuse(
                path,
                f"is of model {record.model_hash[:12]}… in {record.precision} for {record.machine}",
                f"{model_hash[:12]}… in {precision} for {machine}",
            )
        if record.batch_sizes[-1] >= max(batch_sizes):
            padding = sum(size_to_run(size, record.batch_sizes) - size for size in batch_sizes)
            suited.append((padding, len(record.batch_sizes), path.with_suffix(""), record))
    if not suited:
        others = folder.glob(f"{model_hash[:_HASH_LENGTH]}-{precision}-*{_ENGINE}")
        others_said = ", ".join(path.name for path in sorted(others)) or "none"
        sizes = ",".join(map(str, batch_sizes))
        raise BackendError(
            f"There is no TensorRT engine of this bundle in {precision} for {machine} and batches of up to "
            f"{max(batch_sizes)} in {folder} (of this model at this precision: {others_said}).",
            "an engine that was built on this machine",
            build_command(bundle, precision, f" --batch-sizes {sizes}" if max(batch_sizes) > 1 else ""),
        )
    _, _, path, record = min(suited, key=lambda each: each[:2])
    return StoredEngine(path, record)


def reason_against_engine(folder: Path, bundle: Bundle, precision: Precision, machine: Machine) -> str | None:
    """Why no engine in the folder runs a bundle on this machine, in words; None where one does."""
    try:
        find_engine(folder, bundle, precision, machine)
    except BackendError as error:
        return f"{error.found.rstrip('.')}; {error.remedy.rstrip('.')}"
    return None


def build_command(bundle: Bundle, precision: Precision, options: str = "") -> str:
    """What to do about a missing engine."""
    command = f"surgseg-export build {bundle.folder} --runtime tensorrt --precision {precision}{options}"
    return f"Build one: `{command}`."


def store_engine(folder: Path, record: EngineRecord, data: bytes) -> StoredEngine:
    """Write an engine and then its record, each whole or not at all; an older one of the same key is replaced.

    Until the record is there the engine is not found. Raises BackendError when the disk refuses.
    """
    path = folder / record.engine_name
    record_path = path.with_name(path.name + _RECORD)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        record_path.unlink(missing_ok=True)
        write_atomically(path, data)
        write_atomically(record_path, (record.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise BackendError(
            f"{path} cannot be written ({error.strerror or error}).",
            "a folder to keep engines in",
            "Name another with --engines, and with SURGSEG_ENGINES when serving.",
        ) from error
    return StoredEngine(path, record)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file beside its name, bring it to the disk, then give it its name. Raises OSError."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def timing_cache_path(folder: Path, machine: Machine) -> Path:
    """Where the times that the builder measured for its kernels are kept, so that the next engine is built sooner."""
    return folder / f"timing-{_name_machine(machine)}.cache"


def size_to_run(count: int, batch_sizes: Sequence[int]) -> int:
    """The smallest of the engine's batch sizes, ascending, that holds so many pictures."""
    return next(size for size in batch_sizes if size >= count)


def _name_start(model_hash: str, precision: Precision, machine: Machine) -> str:
    return f"{model_hash[:_HASH_LENGTH]}-{precision}-{_name_machine(machine)}"


def _name_machine(machine: Machine) -> str:
    return f"sm{machine.compute_capability.replace('.', '')}-tensorrt{machine.tensorrt}"


def _read_record(path: Path) -> EngineRecord:
    try:
        record = EngineRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror or error})", "the record of an engine")
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        _refuse(path, f"is not the record of an engine: {where}: {fault['msg']}", "the record of an engine")
    if record.batch_sizes != tuple(sorted(set(record.batch_sizes))):
        _refuse(path, f"lists batch sizes {record.batch_sizes}", "them ascending, each once")
    return record


def _refuse(path: Path, found: str, expected: str) -> NoReturn:
    raise BackendError(
        f"{path} {found}.",
        expected,
        "Delete it, and build the engine again with `surgseg-export build --force`.",
    )
