"""`surgseg-train data screen`: what screening keeps of an unlabeled pool, as counts and as a sheet to look at."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from service.contract.geometry import Image, fit_image, plan_fit
from service.contract.model_card import InputSize
from service.errors import DataError
from training.data import open_data
from training.data.samples import Sample
from training.data.screening import Screening, screen

TILE = InputSize(height=90, width=160)
CAPTION_HEIGHT = 14
COLUMNS = 12
MOST_TILES = 600  # JPEG ends at 65,535 lines, and nobody looks at more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `surgseg-train data screen`."""
    parser.add_argument("name", metavar="NAME", help="the reader, for example video (docs/datasets.md)")
    parser.add_argument("path", metavar="PATH", help="where the frames are")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a JPEG or PNG sheet of what was decided")


def run_screen(arguments: argparse.Namespace) -> None:
    """Screen as the command line asks and print the counts. Raises DataError when nothing is kept."""
    screening = screen(open_data(f"{arguments.name}:{arguments.path}"))
    print(screening.describe())
    if arguments.out:
        _write_sheet(screening, arguments.out)
        print(arguments.out)
    if not screening.kept:
        raise DataError(
            f"Screening keeps no frame of {arguments.path}.",
            "frames from inside the body",
            "Look at them with --out sheet.jpg; train without screening if they are what you want.",
        )


def draw_sheet(screening: Screening) -> Image:
    """A contact sheet, RGB: rejected frames first, each with its reason, then those kept; evenly thinned to 600."""
    rejected = [(sample, reason) for reason, samples in screening.rejected.items() for sample in samples]
    captioned: list[tuple[Sample, str]] = [*rejected, *((sample, "kept") for sample in screening.kept)]
    step = max(1, -(-len(captioned) // MOST_TILES))
    tiles = [_draw_tile(sample, caption) for sample, caption in captioned[::step]]
    blank = np.zeros_like(tiles[0])
    rows = [_join(tiles[start : start + COLUMNS], blank) for start in range(0, len(tiles), COLUMNS)]
    return np.concatenate(rows)


def _join(tiles: Sequence[Image], blank: Image) -> Image:
    return np.concatenate([*tiles, *[blank] * (COLUMNS - len(tiles))], axis=1)


def _draw_tile(sample: Sample, caption: str) -> Image:
    image_hwc = sample.load_image()
    height, width = image_hwc.shape[:2]
    picture_hwc = fit_image(image_hwc, plan_fit(height, width, TILE))
    strip_hwc = np.zeros((CAPTION_HEIGHT, TILE.width, 3), np.uint8)
    text = f"{caption} {sample.sample_id[-16:]}"
    colour = (255, 255, 255) if caption == "kept" else (255, 160, 60)
    cv2.putText(strip_hwc, text, (2, CAPTION_HEIGHT - 3), cv2.FONT_HERSHEY_PLAIN, 0.7, colour, 1)
    return np.concatenate([picture_hwc, strip_hwc])


def _write_sheet(screening: Screening, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), draw_sheet(screening)[:, :, ::-1])
    except cv2.error:
        written = False
    if not written:
        raise DataError(f"{path} cannot be written.", "a .jpg or .png file", "Name another --out.")
