"""EndoVis 2015 rigid instruments: four laparoscopic operations of 40 frames, 640 x 480, sharp hand-made masks.

Layout: `OPk/Raw/img_NN_raw.png`, `OPk/Masks/img_NN_class.png` (0, 70 manipulator, 160 shaft).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from service.errors import DataError
from training.data.samples import Sample, read_binary_mask, read_image

CLASS_VALUES = (0, 70, 160)


def read(root: Path) -> list[Sample]:
    """All frames of all operations, in order of operation and number."""
    samples = []
    for image_path in sorted(root.glob("OP*/Raw/img_*_raw.png")):
        operation, number = image_path.parts[-3], image_path.stem.removesuffix("_raw")
        mask_path = root / operation / "Masks" / f"{number}_class.png"
        if not mask_path.is_file():
            raise DataError(
                f"{image_path} has no mask {mask_path}.", "one for every frame", "Complete the data set."
            )
        samples.append(
            Sample(
                sample_id=f"{operation}/{number}",
                video=operation,
                load_image=partial(read_image, image_path),
                load_mask=partial(read_binary_mask, mask_path, CLASS_VALUES),
            )
        )
    return samples
