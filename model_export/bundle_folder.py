"""Where a bundle is written: whole, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.contract.bundle import Bundle
from service.contract.model_card import CARD_NAME
from service.errors import BundleError


def check_target(folder: Path, replace: bool) -> None:
    """Raise BundleError unless a bundle may be written to `folder`: it is new or empty, or a bundle to `replace`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CARD_NAME).is_file():
        raise BundleError(f"{folder} exists and is not a bundle.", "a new folder", "Choose another --out.")
    if not replace:
        raise BundleError(
            f"There is a bundle at {folder}.", "a new folder", "Choose another --out, or add --force."
        )


def copy_files(bundle: Bundle, folder: Path) -> None:
    """Copy every file but the card and its seal to `folder`."""
    for name in bundle.card.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, folder / name)


@contextmanager
def fill_unseen(folder: Path, replace: bool) -> Iterator[Path]:
    """A hidden sibling to fill; it becomes `folder` when the block ends well and vanishes when it does not.

    When a bundle is replaced there is an instant with none, but never a half-written one. Raises BundleError where it
    cannot be written.
    """
    try:
        with _hidden_sibling(folder, replace) as partial:
            yield partial
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be written ({error.strerror or error}).",
            "a folder to write to",
            "Choose another --out.",
        ) from error


@contextmanager
def _hidden_sibling(folder: Path, replace: bool) -> Iterator[Path]:
    token = secrets.token_hex(4)
    partial = folder.parent / f".{folder.name}.{token}.partial"
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush(partial)
        if replace and folder.exists():
            previous = folder.parent / f".{folder.name}.{token}.previous"
            folder.rename(previous)
            try:
                partial.rename(folder)
            except OSError:
                previous.rename(folder)
                raise
            shutil.rmtree(previous)
        else:
            partial.rename(folder)
        _flush_entry(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring every file and folder entry to the disk before the name appears."""
    for path in [*folder.rglob("*"), folder]:
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
