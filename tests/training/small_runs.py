"""A tiny data set and recipe that train in seconds, shared by the tests of methods, trainer and checkpoints."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from training.config import Recipe, load_recipe
from training.trainer import LAST, Trainer

RECIPE = """
description = "bars on a plain ground"
seed = 3
steps = 6
batch_size = 2
workers = 0
precision = "float32"
device = "cpu"
validate_every = 3
save_every = 2
input_size = { height = 64, width = 96 }

[network]
options = { encoder = "mobilenetv4_conv_small_050", width = 16 }

[optimizer]
learning_rate = 2e-3
warmup_steps = 2

[[labeled]]
source = "folder:FOLDER"

[[validation]]
source = "folder:FOLDER"
"""


TEACHER_TABLE = '{ name = "edge", options = { encoder = "mobilenetv4_conv_small_050", width = 24 } }'


def write_teacher(folder: Path) -> Path:
    """The checkpoint of a wider network, trained for a step; made once."""
    path = folder / "teacher" / LAST
    if not path.exists():
        recipe = small_recipe(folder, f"network={TEACHER_TABLE}", "steps=1", "validate_every=1", "seed=9")
        Trainer(recipe, path.parent).run(progress=False)
    return path


def write_bars(folder: Path, count: int = 6) -> Path:
    """Bright bars on a dark ground with their masks, in the generic layout."""
    rng = np.random.default_rng(0)
    for part in ("image", "mask"):
        (folder / "train" / part).mkdir(parents=True)
    for index in range(count):
        mask_hw = np.zeros((64, 96), np.uint8)
        start, end = rng.integers(0, 96, 2), rng.integers(0, 64, 2)
        cv2.line(mask_hw, (int(start[0]), int(end[0])), (int(start[1]), int(end[1])), 255, 9)
        ground = rng.integers(20, 90, (64, 96, 3), dtype=np.uint8)
        cv2.imwrite(
            str(folder / "train" / "image" / f"{index}.png"), np.where(mask_hw[:, :, None] > 0, 220, ground)
        )
        cv2.imwrite(str(folder / "train" / "mask" / f"{index}.png"), mask_hw)
    return folder


def small_recipe(folder: Path, *overrides: str) -> Recipe:
    """The tiny recipe over the tiny data, both under `folder`."""
    if not (folder / "data").exists():
        write_bars(folder / "data")
    path = folder / "bars.toml"
    if not path.exists():  # two processes of one run may ask at once: neither may find it half written
        path.write_text(RECIPE.replace("FOLDER", str(folder / "data")))
    return load_recipe(path, list(overrides))
