"""Label files: instrument masks as polygons, drawn or corrected by others than a data set's publishers.

A file is `{"data": reader, "frames": {"video/name": {"size": [H, W], "polygons": [[x, y, x, y, ...], ...]}},
"left_out": {"video/name": why}}`. Corners are whole pixels of the frame; inside is what an odd number of a frame's
polygons covers, so a hole is a polygon within another. A frame without polygons has no instrument.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from service.contract.geometry import Mask
from service.errors import DataError
from training.data.samples import INSTRUMENT, Sample

LABELS = Path(__file__).parent / "labels"
SHAPE = (
    '{"data": reader, "frames": {"video/name": {"size": [H, W], "polygons": [[x, y, ...]]}}, "left_out": {}}'
)


@dataclass(frozen=True)
class LabelFile:
    """The masks of some frames of a data set, and the frames that cannot be judged, each with its reason."""

    path: Path
    data: str
    frames: dict[str, dict[str, Any]]
    left_out: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, which tells runs apart that saw other masks of the same frames."""
        return sha256(self.path.read_bytes()).hexdigest()

    def check(self, samples: Sequence[Sample]) -> None:
        """Raises DataError for a frame of the file that is not among all of the data set's."""
        known = {sample.sample_id for sample in samples}
        missing = [frame for frame in [*self.frames, *self.left_out] if frame not in known]
        if missing:
            raise DataError(
                f"{self.path} labels {len(missing)} frames that are not there, first {missing[0]}.",
                f"frames of {self.data}",
                "Complete the data set, or name the label file of this one.",
            )

    def apply(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with these masks in the place of their own, if any, without the frames that are left out.

        Frames that the file does not name stay as they are.
        """
        return [self._relabel(sample) for sample in samples if sample.sample_id not in self.left_out]

    def _relabel(self, sample: Sample) -> Sample:
        if sample.sample_id not in self.frames:
            return sample
        return dataclasses.replace(sample, load_mask=partial(_draw, self.frames[sample.sample_id]))


def load_labels(name: str) -> LabelFile:
    """`name` is that of a label file that ships, or the path of a JSON file. Raises DataError."""
    path = Path(name) if name.endswith(".json") else LABELS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in LABELS.glob("*.json")))
        raise DataError(
            f"There is no label file {name!r}.", f"a JSON file, or one of {known}", "Check the recipe."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels = LabelFile(path, str(content["data"]), content["frames"], content.get("left_out", {}))
        for frame, shape in labels.frames.items():
            _check(shape, frame)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a label file ({error}).", SHAPE, "Mend what it names (docs/datasets.md)."
        ) from error
    return labels


def describe_mask(mask_hw: Mask, tolerance: float = 1.0) -> dict[str, Any]:
    """A mask as an entry of a label file: its outlines, within `tolerance` pixels."""
    contours, _ = cv2.findContours((mask_hw > 0).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [cv2.approxPolyDP(contour, tolerance, closed=True) for contour in contours]
    polygons = [outline.reshape(-1).tolist() for outline in outlines if len(outline) > 2]
    return {"size": list(mask_hw.shape), "polygons": polygons}


def _draw(shape: dict[str, Any]) -> Mask:
    mask_hw: Mask = np.zeros(shape["size"], np.uint8)
    corners = [np.array(polygon, np.int32).reshape(-1, 2) for polygon in shape["polygons"]]
    return np.asarray(cv2.fillPoly(mask_hw, corners, INSTRUMENT), dtype=np.uint8) if corners else mask_hw


def _check(shape: dict[str, Any], frame: str) -> None:
    """Raises ValueError, which says what of a frame's entry is wrong."""
    height, width = shape["size"]
    for polygon in shape["polygons"]:
        corners = np.array(polygon)
        is_whole = (
            corners.ndim == 1 and corners.size >= 6 and corners.size % 2 == 0 and corners.dtype.kind == "i"
        )
        if not is_whole or (corners < 0).any() or (corners.reshape(-1, 2) >= (width, height)).any():
            raise ValueError(
                f"{frame} has a polygon that is not three or more corners inside {width} x {height}"
            )
