"""EndoVis 2018 robotic scenes: 16 da Vinci videos of 149 frames, 1280 x 1024, every pixel labeled by a colour.

Layout: `labels.json`, a list of `{"name", "color": [R, G, B], "classid"}`, beside `seq_k/left_frames/frameNNN.png` and
`seq_k/labels/frameNNN.png`. A sequence without `labels` is unlabeled. Instruments are, by their names: the three parts
of the robotic instruments, the suction instrument and the ultrasound probe. Clamps, needles and threads are what
instruments hold or leave behind, so they are background, like tissue.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from service.contract.geometry import Mask
from service.errors import DataError
from training.data.pairs import pair
from training.data.samples import BACKGROUND, INSTRUMENT, Sample, read_image

INSTRUMENTS = frozenset(
    {"instrument-shaft", "instrument-wrist", "instrument-clasper", "suction-instrument", "ultrasound-probe"}
)
UNKNOWN = 255

Colours = tuple[tuple[int, int], ...]  # 0xRRGGBB with its class


def read(root: Path) -> Iterator[Sample | DataError]:
    """All frames with binary masks, in order of sequence and number."""
    sequences = sorted(root.glob("seq_*"), key=lambda path: (len(path.name), path.name))
    if not sequences:
        return
    colours = _read_colours(root / "labels.json") if any((s / "labels").is_dir() for s in sequences) else ()
    for sequence in sequences:
        labels = sequence / "labels"
        masks = {f"{labels}/frameNNN.png": _named(labels)} if labels.is_dir() else {}
        yield from pair(_named(sequence / "left_frames"), masks, partial(_load_mask, colours=colours))


def _named(folder: Path) -> list[tuple[str, Path]]:
    return [(f"{folder.parent.name}/{path.stem}", path) for path in sorted(folder.glob("frame*.png"))]


def _read_colours(path: Path) -> Colours:
    """Each colour's class. Raises DataError: without the table no mask means anything."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        class_of = {}
        for entry in entries:
            red, green, blue = (int(channel) for channel in entry["color"])
            is_instrument = entry["name"].strip().lower() in INSTRUMENTS
            class_of[red << 16 | green << 8 | blue] = INSTRUMENT if is_instrument else BACKGROUND
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} gives no colours ({error.__class__.__name__}: {error}).",
            'a list of {"name", "color", "classid"}',
            "Take labels.json from the release.",
        ) from error
    if INSTRUMENT not in class_of.values():
        raise DataError(
            f"{path} names no instrument.",
            f"one of {', '.join(sorted(INSTRUMENTS))}",
            "Take it from the release.",
        )
    return tuple(sorted(class_of.items()))


@lru_cache(maxsize=1)
def _colour_table(colours: Colours) -> np.ndarray:
    """The class of each of the 2^24 colours, uint8, `UNKNOWN` where it has none."""
    table = np.full(1 << 24, UNKNOWN, np.uint8)
    for colour, class_id in colours:
        table[colour] = class_id
    return table


def _load_mask(path: Path, colours: Colours) -> Mask:
    red, green, blue = np.moveaxis(read_image(path).astype(np.uint32), 2, 0)
    packed = red << 16 | green << 8 | blue
    mask_hw = _colour_table(colours)[packed]
    if (mask_hw == UNKNOWN).any():
        unknown = [f"#{colour:06x}" for colour in np.unique(packed[mask_hw == UNKNOWN])[:5]]
        raise DataError(
            f"{path} holds the unknown colours {', '.join(unknown)}.",
            f"the {len(colours)} colours of labels.json",
            "Check that this is the mask, and that labels.json is of the same release.",
        )
    return mask_hw
