"""Measuring masks against labels: Dice, IoU and surface distance by frame, video and overall, with overlays.

`surgseg-train evaluate` measures a checkpoint and `surgseg-export evaluate` a bundle by the same code: both hand over a
function from fitted pictures to masks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from service.contract.geometry import FitRule, Image, Mask, fit_image, plan_fit, restore_mask
from service.contract.model_card import ClassInfo, InputSize
from service.errors import DataError
from training.data.samples import Sample
from training.data.selection import open_frames
from training.metrics import class_dices, confidence_interval, dice_and_iou, normalised_surface_distance
from training.volume_scores import VOLUMES, VolumeCollector, VolumeEvaluation

# The tolerance of the surface distance as a share of the picture's diagonal: 8 pixels at 640 x 480, the 1.2 % of the
# ROBUST-MIS challenge rounded down.
TOLERANCE_OF_DIAGONAL = 0.01
METRICS = ("dice", "iou", "nsd")

Predict = Callable[[Image], Mask]


@dataclass(frozen=True)
class FrameScore:
    """One frame's figures, each 0 to 1; `nsd` is None where surfaces were not measured.

    `class_dice` is the Dice of each foreground class in the order of their ids, None for one that is in neither mask.
    """

    sample_id: str
    video: str
    dice: float
    iou: float
    nsd: float | None = None
    class_dice: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """The scores of every frame of one data set and, where frames are slices, of every volume.

    `names` are those of the foreground classes.
    """

    data: str
    scores: tuple[FrameScore, ...]
    names: tuple[str, ...] = ()
    volumes: VolumeEvaluation | None = None

    @property
    def mean_dice(self) -> float:
        return float(np.mean([score.dice for score in self.scores]))

    def to_json(self) -> dict[str, Any]:
        """`overall` and `videos` with a mean and a 95 % interval for each metric, and every frame's figures.

        `classes` holds the mean Dice of each by name, over the frames in which label or mask has it, and how many.
        With volumes `volumes` holds their figures in 3-D (training.volume_scores).
        """
        videos = sorted({score.video for score in self.scores})
        return {
            "data": self.data,
            "frames": len(self.scores),
            "surface_tolerance": f"{TOLERANCE_OF_DIAGONAL:.0%} of the diagonal",
            "overall": _summarise(self.scores),
            "videos": {video: _summarise([s for s in self.scores if s.video == video]) for video in videos},
            "classes": self._summarise_classes(),
            **({} if self.volumes is None else {VOLUMES: self.volumes.to_json()}),
            "per_frame": [vars(score) for score in self.scores],
        }

    def to_table(self) -> str:
        """A line per video and one for all: mean and 95 % interval; then the table of the volumes, or the Dice of each
        class where there are several."""
        summary = self.to_json()
        rows = [*summary["videos"].items(), ("overall", summary["overall"])]
        width = max(len(name) for name, _ in rows) + 2
        lines = [f"{'video':<{width}}{'frames':>7}  " + "  ".join(f"{metric:<22}" for metric in METRICS)]
        for name, row in rows:
            cells = (
                f"{row[m]['mean']:.3f} [{row[m]['ci95'][0]:.3f}, {row[m]['ci95'][1]:.3f}]" for m in METRICS
            )
            lines.append(f"{name:<{width}}{row['frames']:>7}  " + "  ".join(f"{cell:<22}" for cell in cells))
        if self.volumes is not None:
            lines += ["", self.volumes.to_table()]
        elif len(classes := summary["classes"]) > 1:
            width = max(len(name) for name in classes) + 2
            lines.append(f"{'class':<{width}}{'frames':>7}  dice")
            for name, figures in classes.items():
                dice = "-" if figures["dice"] is None else f"{figures['dice']:.3f}"
                lines.append(f"{name:<{width}}{figures['frames']:>7}  {dice}")
        return "\n".join(line.rstrip() for line in lines)

    def _summarise_classes(self) -> dict[str, dict[str, Any]]:
        summary = {}
        for place, name in enumerate(self.names):
            found = [dice for score in self.scores if (dice := score.class_dice[place]) is not None]
            summary[name] = {"frames": len(found), "dice": float(np.mean(found)) if found else None}
        return summary


def evaluate_samples(
    predict: Predict,
    samples: Sequence[Sample],
    input_size: InputSize,
    fit: FitRule,
    *,
    classes: int = 2,
    names: Sequence[str] = (),
    data: str = "",
    overlays: Path | None = None,
    surfaces: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Fit each frame as the service does, predict, restore the mask to the frame's own size and score it there.

    Surface distances take longer than the network on large frames; `surfaces=False` leaves them out, and with them the
    figures of volumes. `names` are those of the foreground classes; without them they go by their ids.
    `predict` takes uint8 RGB `(1, H, W, 3)` and gives uint8 class ids `(1, H, W)`. `overlays` is a folder for pictures
    of every frame, named by their Dice so that a listing goes from worst to best.
    """
    structures = names or [f"class {class_id}" for class_id in range(1, classes)]
    collector = VolumeCollector(samples, structures) if surfaces else None
    scores = []
    for sample in tqdm(samples, desc=data or "evaluate", unit="frame", disable=not progress):
        image_hwc, true_hw = sample.load()
        if true_hw is None:
            raise DataError(
                f"{sample.sample_id} is unlabeled.", "labeled frames", "Evaluate on data with masks."
            )
        _require_known_classes(sample, true_hw, classes)
        planned = plan_fit(*image_hwc.shape[:2], input_size, fit)
        predicted_hw = restore_mask(predict(fit_image(image_hwc, planned)[None])[0], planned)
        scores.append(_score(sample, predicted_hw, true_hw, classes, surfaces))
        if collector is not None:
            collector.add(sample, predicted_hw)
        if overlays is not None:
            path = overlays / f"{scores[-1].dice:.3f}_{sample.sample_id.replace('/', '_')}.jpg"
            overlays.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), draw_comparison(image_hwc, predicted_hw, true_hw)[:, :, ::-1])
    return Evaluation(
        data, tuple(scores), tuple(names), volumes=None if collector is None else collector.finish()
    )


def _score(sample: Sample, predicted_hw: Mask, true_hw: Mask, classes: int, surfaces: bool) -> FrameScore:
    dice, iou = dice_and_iou(predicted_hw, true_hw, classes)
    nsd = None
    if surfaces:
        tolerance_px = TOLERANCE_OF_DIAGONAL * float(np.hypot(*true_hw.shape))
        nsd = normalised_surface_distance(predicted_hw, true_hw, classes, tolerance_px)
    dices = class_dices(predicted_hw, true_hw, classes)
    return FrameScore(sample.sample_id, sample.video, dice, iou, nsd, dices)


def _require_known_classes(sample: Sample, true_hw: Mask, classes: int) -> None:
    """What the network cannot label would count nowhere, neither as found nor as missed."""
    if (largest := int(true_hw.max(initial=0))) >= classes:
        raise DataError(
            f"{sample.sample_id} holds the class {largest}.",
            f"classes 0 to {classes - 1}, as the network has them",
            "Name data whose classes are the network's.",
        )


def draw_comparison(image_hwc: Image, predicted_hw: Mask, true_hw: Mask) -> Image:
    """The picture with agreement in green, what was missed in blue and what was invented in red."""
    colours = np.zeros_like(image_hwc)
    colours[(predicted_hw > 0) & (predicted_hw == true_hw)] = (0, 220, 0)
    colours[(true_hw > 0) & (predicted_hw != true_hw)] = (40, 120, 255)
    colours[(predicted_hw > 0) & (true_hw == 0)] = (255, 0, 0)
    mixed = cv2.addWeighted(image_hwc, 0.55, colours, 0.45, 0)
    return np.where(colours.any(axis=2, keepdims=True), mixed, image_hwc)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every evaluate command takes."""
    add_data_arguments(parser)
    parser.add_argument("--overlays", type=Path, metavar="DIR", help="write a picture of every frame here")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that measures on labeled frames: which ones, and where the figures go."""
    parser.add_argument("--data", required=True, metavar="READER:PATH", help="for example folder:frames")
    parser.add_argument("--split", default="", help="a committed split or a JSON file; with --part")
    parser.add_argument("--part", default="test", help="the part of the split (default: test)")
    parser.add_argument(
        "--labels",
        default="",
        metavar="NAME",
        help="a label file whose masks take the place of the data set's",
    )
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="every N-th frame (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")


def run_evaluation(
    arguments: argparse.Namespace,
    predict: Predict,
    input_size: InputSize,
    fit: FitRule,
    classes: Sequence[ClassInfo],
) -> Evaluation:
    """Evaluate as the command line asks, print the table and write what was asked for."""
    evaluation = evaluate_samples(
        predict,
        select_samples(arguments),
        input_size,
        fit,
        classes=len(classes),
        names=[info.name for info in classes[1:]],
        data=arguments.data.partition(":")[0],
        overlays=arguments.overlays,
    )
    print(evaluation.to_table())
    write_figures(arguments, evaluation.to_json())
    return evaluation


def select_samples(arguments: argparse.Namespace) -> list[Sample]:
    """The frames that the options of `add_data_arguments` name. Raises DataError."""
    samples = open_frames(arguments.data, arguments.split, arguments.part, arguments.labels)
    if arguments.stride < 1:
        raise DataError(f"--stride {arguments.stride}.", "1 or more", "Leave it out for every frame.")
    return samples[:: arguments.stride]


def write_figures(arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write what was measured to the file of --json, if there is one."""
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _summarise(scores: Sequence[FrameScore]) -> dict[str, Any]:
    videos = [score.video for score in scores]
    summary: dict[str, Any] = {"frames": len(scores)}
    for metric in METRICS:
        values = [value for score in scores if (value := getattr(score, metric)) is not None]
        if not values:
            continue
        summary[metric] = {"mean": float(np.mean(values)), "ci95": confidence_interval(values, videos)}
    return summary
