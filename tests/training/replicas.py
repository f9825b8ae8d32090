"""Small replicas of public data sets, written to disk in their real layout, for the tests of readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 24, 32


def write_picture(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def left_half(value: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask with `value` on the left half."""
    mask_hw = np.zeros((height, width), np.uint8)
    mask_hw[:, : width // 2] = value
    return mask_hw


def as_rgb_file(mask_hw: np.ndarray) -> np.ndarray:
    return np.repeat(mask_hw[:, :, None], 3, axis=2)


def write_kvasir_instrument(root: Path) -> None:
    for name in ("ck01", "ck02", "ck03"):
        write_picture(root / "images" / f"{name}.jpg", picture())
        write_picture(root / "masks" / f"{name}.png", as_rgb_file(left_half(255)))
    (root / "train.txt").write_text("ck01\nck03\n")
    (root / "test.txt").write_text("ck02\n")


def write_endovis2017(root: Path) -> None:
    """Video 2 has the release's 1920 x 1080, video 10 is cropped. Other covers the right quarter of the view."""
    for number, (height, width, top, left) in {2: (1080, 1920, 28, 320), 10: (1024, 1280, 0, 0)}.items():
        video = root / f"instrument_dataset_{number}"
        shaft, wrist, other = (np.zeros((height, width), np.uint8) for _ in range(3))
        shaft[:, left : left + 320], wrist[:, left + 320 : left + 640] = 10, 20
        other[:, left + 960 : left + 1280] = 40
        frame = np.zeros((height, width, 3), np.uint8)  # black round the view
        frame[top : top + 1024, left : left + 1280] = 90
        for name in ("frame000", "frame001"):
            write_picture(video / "left_frames" / f"{name}.png", frame)
            write_picture(video / "ground_truth" / "Left_Prograsp_Forceps_labels" / f"{name}.png", shaft)
            write_picture(video / "ground_truth" / "Right_Vessel_Sealer" / f"{name}.png", wrist)
            write_picture(video / "ground_truth" / "Other_labels" / f"{name}.png", other)


def write_endovis2018(root: Path) -> None:
    """A quarter each of shaft, kidney, suction instrument and thread."""
    classes = {
        "background-tissue": [0, 0, 0],
        "instrument-shaft": [0, 255, 0],
        "kidney-parenchyma": [255, 55, 0],
        "thread": [187, 155, 25],
        "suction-instrument": [123, 15, 175],
    }
    entries = [{"name": n, "color": c, "classid": i} for i, (n, c) in enumerate(classes.items())]
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.json").write_text(json.dumps(entries))
    labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    quarters = ("instrument-shaft", "kidney-parenchyma", "suction-instrument", "thread")
    for quarter, name in enumerate(quarters):
        labels[:, quarter * 8 : quarter * 8 + 8] = classes[name][::-1]  # OpenCV writes BGR
    for sequence in ("seq_2", "seq_10"):
        for frame in ("frame000", "frame001"):
            write_picture(root / sequence / "left_frames" / f"{frame}.png", picture())
            write_picture(root / sequence / "labels" / f"{frame}.png", labels)


def write_robotool(root: Path) -> None:
    for name in ("dv10_00001", "dv10_00197", "dv2_00005"):
        write_picture(root / f"{name}.png", picture())
        write_picture(root / f"{name}_seg.png", left_half(255))


def write_art_net(root: Path) -> None:
    for part in ("Train", "Test"):
        for number in (1, 2):
            name = f"{part}_Pos_sample_{number:04d}"
            write_picture(root / part / f"{part}_Positive" / f"{name}.png", picture())
            mask_path = root / part / f"{part}_Positive_Tool_Mask" / f"{name}_Tool_Mask.png"
            write_picture(mask_path, left_half(255))
            negative = root / part / f"{part}_Negative" / f"{part}_Neg_sample_{number:04d}.png"
            write_picture(negative, picture())


def write_cholecseg8k(root: Path) -> None:
    """Left half grasper, then L-hook, gallbladder, the white rim and pixels that were left out."""
    mask_hw = left_half(31)
    mask_hw[:, 16:20], mask_hw[:, 20:28], mask_hw[:, 28:30], mask_hw[:, 30:] = 32, 22, 255, 0
    for clip, first in (("video01/video01_00080", 80), ("video12/video12_19500", 19500)):
        for number in (first, first + 29):
            stem = root / clip / f"frame_{number}_endo"
            write_picture(stem.with_suffix(".png"), picture())
            write_picture(stem.with_name(stem.name + "_watershed_mask.png"), as_rgb_file(mask_hw))
            write_picture(stem.with_name(stem.name + "_color_mask.png"), picture())


def write_folder(root: Path) -> None:
    for name in ("train/image/case1/a.jpg", "train/image/case1/b.jpg", "test/image/case2/a.jpg"):
        write_picture(root / name, picture())
        write_picture((root / name.replace("image", "mask")).with_suffix(".png"), left_half(255))


REPLICAS: dict[str, Callable[[Path], None]] = {
    "kvasir_instrument": write_kvasir_instrument,
    "endovis2017": write_endovis2017,
    "endovis2018": write_endovis2018,
    "robotool": write_robotool,
    "art_net": write_art_net,
    "cholecseg8k": write_cholecseg8k,
    "folder": write_folder,
}
