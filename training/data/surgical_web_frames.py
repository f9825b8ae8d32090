"""Laparoscopic and robotic frames of five published videos, 640 x 640, stretched (the true aspect is lost).

Layout: `images/<video>_<n>.jpg`, `masks/<video>_<n>.png` with 255 = instrument. Masks are coarse, and some visible
tools are unlabeled.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.samples import Sample, read_binary_mask, read_image


def read(root: Path) -> list[Sample]:
    """All frames, in order of video and number."""
    samples = []
    for image_path in sorted((root / "images").glob("*.jpg")):
        video = image_path.stem.partition("_")[0]
        mask_path = root / "masks" / f"{image_path.stem}.png"
        if not mask_path.is_file():
            raise DataError(
                f"{image_path} has no mask {mask_path}.", "one for every frame", "Complete the data set."
            )
        samples.append(
            Sample(
                sample_id=f"{video}/{image_path.stem}",
                video=video,
                load_image=partial(read_image, image_path),
                load_mask=partial(read_binary_mask, mask_path, (0, 255)),
            )
        )
    return samples
