"""The generic layout: `<root>/{train,test}/{image,mask}/`, masks named as their pictures, 0 = background, 255 or 1 =
instrument. Without a `mask` folder the frames are unlabeled.

A frame's video is its sub-folder inside `image/`, or the folder `train` or `test` itself where there is none.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.samples import Sample, read_binary_mask, read_image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
KNOWN_VALUES = (0, 1, 255)


def read(root: Path) -> list[Sample]:
    """All frames of `train` and `test` in order of their names."""
    samples: list[Sample] = []
    for part in ("train", "test"):
        images = root / part / "image"
        if images.is_dir():
            samples += _read_part(images, root / part / "mask", part)
    return samples


def _read_part(images: Path, masks: Path, part: str) -> list[Sample]:
    masks_by_name = _masks_by_name(masks) if masks.is_dir() else None
    samples = []
    for image_path in sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        name = image_path.relative_to(images).with_suffix("").as_posix()
        load_mask = None
        if masks_by_name is not None:
            if name not in masks_by_name:
                raise DataError(
                    f"{image_path} has no mask in {masks}.",
                    f"{name}.png",
                    "Add the mask, or remove the picture.",
                )
            load_mask = partial(read_binary_mask, masks_by_name[name], KNOWN_VALUES)
        folder = name.rpartition("/")[0]
        video = f"{part}/{folder}" if folder else part
        samples.append(Sample(f"{part}/{name}", video, partial(read_image, image_path), load_mask))
    return samples


def _masks_by_name(masks: Path) -> dict[str, Path]:
    paths = (path for path in masks.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return {path.relative_to(masks).with_suffix("").as_posix(): path for path in paths}
