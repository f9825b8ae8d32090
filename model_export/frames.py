"""Pictures to prove a bundle on: frames of a data set, or drawn ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model_export.pictures import draw_pictures
from service.contract.geometry import Image
from service.contract.model_card import InputSize
from training.data import open_data
from training.data.samples import Sample

DRAWN_SIZE = InputSize(height=480, width=640)


def proof_images(data: str | None, limit: int) -> Iterator[Image]:
    """At most `limit` pictures, uint8 RGB of any size: from `data` (READER:PATH), or drawn when that is None.

    Frames are spread evenly over the data set. Raises DataError at once when there is no such data.
    """
    if data is None:
        return draw_pictures(DRAWN_SIZE, limit)
    return _load(spread(open_data(data), limit))


def spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` of the frames, evenly spread, in their order."""
    count = min(limit, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def _load(samples: list[Sample]) -> Iterator[Image]:
    for sample in samples:
        yield sample.load_image()
