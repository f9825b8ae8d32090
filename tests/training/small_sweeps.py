"""A tiny sweep over tiny data, shared by the tests of sweep and report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.training.small_runs import write_bars

SWEEP = """
description = "bars"
shares = [0.5]
folds = ["FOLDER/fold_1.json", "FOLDER/fold_2.json"]
seeds = [0]

[[methods]]
name = "supervised"

[[methods]]
name = "mean_teacher"

[recipe]
steps = 6
batch_size = 2
unlabeled_batch_size = 2
workers = 0
precision = "float32"
device = "cpu"
validate_every = 3
save_every = 1
input_size = { height = 64, width = 96 }

[recipe.network]
options = { encoder = "mobilenetv4_conv_small_050", width = 16 }

[recipe.optimizer]
warmup_steps = 2

[[recipe.labeled]]
source = "folder:FOLDER/data"
split = "the fold's"
part = "train"

[[recipe.unlabeled]]
source = "folder:FOLDER/data"
split = "the fold's"
part = "train"

[[recipe.validation]]
source = "folder:FOLDER/data"
split = "the fold's"
part = "validation"
"""


def write_sweep(folder: Path, *changes: tuple[str, str], name: str = "small") -> Path:
    """The sweep's file, each (old, new) text of `changes` replaced, beside its data of three videos and two folds."""
    if not (folder / "data").exists():
        _write_videos(folder)
        _write_fold(folder, "fold_1", train="a", validation="b", test="c")
        _write_fold(folder, "fold_2", train="b", validation="c", test="a")
    text = SWEEP
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text.replace("FOLDER", str(folder)))
    return path


def _write_videos(folder: Path) -> None:
    bars = write_bars(folder / "bars", count=9)
    for index, video in enumerate("aaabbbccc"):
        for part in ("image", "mask"):
            (folder / "data" / "train" / part / video).mkdir(parents=True, exist_ok=True)
            name = f"{index}.png"
            shutil.copy(bars / "train" / part / name, folder / "data" / "train" / part / video / name)


def _write_fold(folder: Path, name: str, **videos: str) -> None:
    def frames(video: str) -> dict[str, list[str]]:
        stems = (path.stem for path in (folder / "data" / "train" / "image" / video).iterdir())
        return {f"train/{video}": sorted(stems)}

    content = {
        "data": "folder",
        "by": "video",
        "parts": {part: frames(video) for part, video in videos.items()},
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
