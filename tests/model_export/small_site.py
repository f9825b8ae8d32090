"""A small site to adapt to: labeled frames, unlabeled ones and a test set, all drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from model_export.pictures import draw_pictures
from service.contract.model_card import InputSize
from tests.training.small_runs import RECIPE, write_bars

SIZE = InputSize(height=64, width=96)
METHOD = '\n[method]\nname = "mean_teacher"\naverage_decay = 0.9\nramp_steps = 0\n'


def write_pictures(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for number, image_hwc in enumerate(draw_pictures(SIZE, count, seed)):
        cv2.imwrite(str(folder / f"{number}.png"), image_hwc[:, :, ::-1])


def write_site(folder: Path) -> Path:
    """Twelve labeled frames in image/ and mask/, four unlabeled ones and a black one, and a test set."""
    write_bars(folder / "bars", 12)
    (folder / "bars" / "train").rename(folder / "labeled")
    write_pictures(folder / "unlabeled", 4, seed=50)
    cv2.imwrite(str(folder / "unlabeled" / "black.png"), np.zeros((64, 96, 3), np.uint8))
    for part in ("image", "mask"):
        (folder / "test" / part).mkdir(parents=True)
    for number, image_hwc in enumerate(draw_pictures(SIZE, 3, seed=90)):
        mask_hw = np.where(np.ptp(image_hwc, axis=2) < 12, 255, 0).astype(np.uint8)
        cv2.imwrite(str(folder / "test" / "image" / f"{number}.png"), image_hwc[:, :, ::-1])
        cv2.imwrite(str(folder / "test" / "mask" / f"{number}.png"), mask_hw)
    (folder / "small.toml").write_text(RECIPE + METHOD)
    return folder


def arguments_for(site: Path, *more: str) -> list[str]:
    given = ["--labeled", str(site / "labeled"), "--unlabeled", str(site / "unlabeled")]
    trained = ["--recipe", str(site / "small.toml"), "--out", str(site / "bundle")]
    return ["adapt", *given, *trained, *more]
