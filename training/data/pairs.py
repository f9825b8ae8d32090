"""Pairing pictures with their masks by name, for every reader.

A reader gives a Sample for each frame that can be loaded and a DataError for each thing that keeps one from being
loaded: `open_data` raises the first of these, `surgseg-train data check` names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from service.contract.geometry import Image, Mask
from service.errors import DataError
from training.data.samples import Sample, read_image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}

NamedFiles = Iterable[tuple[str, Path]]


def list_pictures(folder: Path) -> list[Path]:
    """Picture files below `folder`, in order of their paths, hidden ones left out; none where there is no folder."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in paths if not path.name.startswith("."))


def pair(
    images: NamedFiles,
    masks: Mapping[str, NamedFiles],
    load_mask: Callable[..., Mask],
    load_image: Callable[[Path], Image] = read_image,
) -> Iterator[Sample | DataError]:
    """A sample for each picture that has its masks, in the order given, then what does not match.

    Files come with the id of their frame, `video/name`. `masks` maps where masks lie, for the message, to the masks
    there: every frame needs one in each place, and `load_mask` takes their paths in that order. Without any place the
    frames are unlabeled.
    """
    problems: list[DataError] = []
    image_of = _index(images, problems)
    places = {place: _index(files, problems) for place, files in masks.items()}
    for sample_id, image_path in image_of.items():
        paths = [files[sample_id] for files in places.values() if sample_id in files]
        if len(paths) == len(places):
            load = partial(load_mask, *paths) if paths else None
            yield Sample(sample_id, sample_id.rpartition("/")[0], partial(load_image, image_path), load)
        problems += [
            _lacks_mask(image_path, place) for place, files in places.items() if sample_id not in files
        ]
    for files in places.values():
        problems += [_lacks_picture(path) for sample_id, path in files.items() if sample_id not in image_of]
    yield from problems


def _index(files: NamedFiles, problems: list[DataError]) -> dict[str, Path]:
    path_of: dict[str, Path] = {}
    for sample_id, path in files:
        if sample_id in path_of:
            found = f"{path_of[sample_id]} and {path} are both frame {sample_id}."
            problems.append(DataError(found, "one file for a frame", "Remove or rename one."))
        else:
            path_of[sample_id] = path
    return path_of


def _lacks_mask(image_path: Path, place: str) -> DataError:
    return DataError(
        f"{image_path} has no mask.",
        f"one for every picture: {place}",
        "Add the mask, or remove the picture.",
    )


def _lacks_picture(mask_path: Path) -> DataError:
    return DataError(
        f"{mask_path} has no picture.", "one for every mask", "Add the picture, or remove the mask."
    )
