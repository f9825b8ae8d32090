"""Which frames of a data set are meant, and which masks: a part of a split, with the masks of a label file."""

from __future__ import annotations

from training.data import open_data
from training.data.labels import load_labels
from training.data.samples import Sample
from training.data.splits import select_part


def open_frames(source: str, split: str = "", part: str = "", labels: str = "") -> list[Sample]:
    """The samples of `READER:PATH`, of one part where a split is named, in a fixed order.

    `labels` names a label file whose masks take the place of the data set's own. Raises DataError.
    """
    samples = list(open_data(source))
    file = load_labels(labels) if labels else None
    if file is not None:
        file.check(samples)
    if split:
        samples = select_part(samples, split, part)
    return samples if file is None else file.apply(samples)
