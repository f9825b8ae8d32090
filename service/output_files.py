"""Where `surgseg segment` puts its files: `OUT/masks/...` and `OUT/overlays/...`, and never on its own input."""

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
    """One picture to segment and the files it gives; `overlay_path` is None when none is wanted."""

    source: Path
    mask_path: Path
    overlay_path: Path | None

    @property
    def outputs(self) -> tuple[Path, ...]:
        return (self.mask_path,) if self.overlay_path is None else (self.mask_path, self.overlay_path)


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What a folder holds: pictures to segment, and how many other files there are."""

    jobs: tuple[PictureJob, ...]
    other_files: int


def plan_picture(source: Path, out: Path, *, mask_suffix: str, has_overlay: bool) -> PictureJob:
    """The job of a single picture."""
    return _plan_job(source, Path(source.stem), out, mask_suffix, has_overlay)


def plan_folder(folder: Path, out: Path, *, mask_suffix: str, has_overlay: bool) -> FolderPlan:
    """The jobs of every picture below `folder`, nested folders kept, in a stable order.

    Hidden files, and what lies in `out` where that is inside `folder`, are left alone. Pictures that differ
    only in their suffix keep it in the names of their masks. Raises DataError when there is no picture.
    """
    files = list(_walk(folder, out))
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
        jobs.append(_plan_job(path, kept, out, mask_suffix, has_overlay))
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


def _plan_job(source: Path, name: Path, out: Path, mask_suffix: str, has_overlay: bool) -> PictureJob:
    mask_path = out / "masks" / name.parent / f"{name.name}{mask_suffix}"
    overlay_path = out / "overlays" / name.parent / f"{name.name}.jpg"
    return PictureJob(source, mask_path, overlay_path if has_overlay else None)


def _walk(folder: Path, out: Path) -> Iterator[Path]:
    excluded = out.resolve()
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (here / name).resolve() != excluded
        )
        yield from (here / name for name in sorted(files) if not name.startswith("."))
