"""Where `surgseg segment` puts its files: `OUT/masks`, `OUT/overlays`, `OUT/confidence`, and never on its own input."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from service.errors import DataError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True, slots=True)
class PictureJob:
    """One picture to segment and the files it gives; the paths of those that are not wanted are None."""

    source: Path
    mask_path: Path
    overlay_path: Path | None
    confidence_path: Path | None

    @property
    def outputs(self) -> tuple[Path, ...]:
        paths = (self.mask_path, self.overlay_path, self.confidence_path)
        return tuple(path for path in paths if path is not None)


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What a folder holds: pictures to segment, and how many other files there are."""

    jobs: tuple[PictureJob, ...]
    other_files: int


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """Where the files go, and which there are besides the masks."""

    out: Path
    mask_suffix: str
    has_overlay: bool
    has_confidence: bool

    def plan(self, source: Path, name: Path) -> PictureJob:
        """The job of `source`, its files called `name`, which may have folders and has no suffix."""
        files = {
            kind: self.out / kind / name.parent / f"{name.name}{suffix}"
            for kind, suffix in (("masks", self.mask_suffix), ("overlays", ".jpg"), ("confidence", ".png"))
        }
        return PictureJob(
            source,
            files["masks"],
            files["overlays"] if self.has_overlay else None,
            files["confidence"] if self.has_confidence else None,
        )


def plan_folder(folder: Path, layout: OutputLayout) -> FolderPlan:
    """The jobs of every picture below `folder`, nested folders kept, in a stable order.

    Hidden files, and what lies in the output folder where that is inside `folder`, are left alone. Pictures that differ
    only in their suffix keep it in the names of their masks. Raises DataError when there is no picture.
    """
    files = list(_walk(folder, layout.out))
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise DataError(
            f"{folder} holds no pictures ({len(files)} other files).",
            "pictures that end in " + ", ".join(sorted(PICTURE_SUFFIXES)),
            "Name a folder of pictures, one picture, or one video.",
        )
    names = [path.relative_to(folder).with_suffix("") for path in pictures]
    taken = Counter(names)
    jobs = []
    for path, name in zip(pictures, names, strict=True):
        kept = name if taken[name] == 1 else path.relative_to(folder)
        jobs.append(layout.plan(path, kept))
    return FolderPlan(tuple(jobs), len(files) - len(pictures))


def check_outputs(sources: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Raise DataError when writing an output would replace a source."""
    inputs = {path.resolve() for path in sources}
    for path in outputs:
        if path.resolve() in inputs:
            raise DataError(
                f"{path} is one of the inputs and would be overwritten.",
                "an output folder apart from the input",
                "Choose another --out.",
            )


def make_folder(folder: Path) -> None:
    """Create a folder and those above it. Raises DataError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"The folder {folder} cannot be made ({error.strerror}).",
            "a folder that can be written to",
            "Choose another --out.",
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises DataError when the disk refuses."""
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}).", "room and permission to write", "Check the disk."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _walk(folder: Path, out: Path) -> Iterator[Path]:
    excluded = out.resolve()
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (here / name).resolve() != excluded
        )
        yield from (here / name for name in sorted(files) if not name.startswith("."))
