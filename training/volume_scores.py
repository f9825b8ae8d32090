"""Whole volumes: Dice, HD95 and normalised surface distance of every structure in 3-D, on the volume's own grid.

Surfaces are MONAI's: it is a dependency already, it is kept up, and it respects the spacing. `Volume.restore` puts the
masks of the slices back first.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.geometry import Mask
from service.errors import DataError
from training.data.samples import Sample
from training.data.volumes import Volume
from training.metrics import confidence_interval

# Surfaces within it of each other agree: about what experts differ by (Nikolov et al., 2018, give 2.5 to 2.9 mm for
# these organs of head and neck), and about two pixels in the plane of ACDC.
TOLERANCE_MM = 3.0
TOLERANCE_VOXELS = 2.0
VOLUMES = "volumes"  # the key of their figures in an evaluation and in a line of a sweep's results
VOLUME_METRICS = ("dice", "hd95", "nsd")
ABSENT, MISSED, INVENTED = "absent", "missed", "invented"

Voxels = NDArray[np.bool_]


@dataclass(frozen=True)
class StructureScore:
    """One structure in one volume. `hd95` is in mm, or in voxels where the volume states no spacing.

    Where neither mask has the structure all three are None. Where only one has it Dice and NSD are 0 and there is no
    distance. `empty` says which of these it is.
    """

    dice: float | None
    hd95: float | None
    nsd: float | None
    empty: str = ""


@dataclass(frozen=True)
class VolumeScore:
    """One volume's structures by name."""

    volume_id: str
    patient: str
    structures: dict[str, StructureScore]


@dataclass(frozen=True)
class VolumeEvaluation:
    """All volumes of one data set; `unit` of their distances is mm or voxels."""

    unit: str
    scores: tuple[VolumeScore, ...]

    def to_json(self) -> dict[str, Any]:
        """Each structure's mean and 95 % interval of each metric, its counts of empty masks; their mean; all volumes.

        The interval draws patients, not volumes. The mean weighs every structure alike.
        """
        structures = {name: self._summarise(name) for name in self.scores[0].structures}
        tolerance = TOLERANCE_MM if self.unit == "mm" else TOLERANCE_VOXELS
        return {
            "count": len(self.scores),
            "unit": self.unit,
            "surface_tolerance": f"{tolerance:g} {self.unit}",
            "structures": structures,
            "mean": {metric: _mean_of(structures.values(), metric) for metric in VOLUME_METRICS},
            "per_volume": [asdict(score) for score in self.scores],
        }

    def to_table(self) -> str:
        """A line per structure and one for their mean."""
        summary = self.to_json()
        names = {
            "dice": "dice 3d",
            "hd95": f"hd95, {self.unit}",
            "nsd": f"nsd {summary['surface_tolerance']}",
        }
        width = max(len(name) for name in ("structure", *summary["structures"])) + 2
        header = "  ".join(f"{names[metric]:<22}" for metric in VOLUME_METRICS)
        lines = [f"{'structure':<{width}}{'volumes':>7}  {header}  absent missed invented"]
        for name, row in summary["structures"].items():
            cells = "  ".join(f"{_format_interval(row[metric]):<22}" for metric in VOLUME_METRICS)
            counts = f"{row[ABSENT]:>6} {row[MISSED]:>6} {row[INVENTED]:>8}"
            lines.append(f"{name:<{width}}{summary['count'] - row[ABSENT]:>7}  {cells}  {counts}")
        means = (summary["mean"][metric] for metric in VOLUME_METRICS)
        cells = "  ".join(f"{'-' if mean is None else format(mean, '.3f'):<22}" for mean in means)
        lines.append(f"{'mean':<{width}}{summary['count']:>7}  {cells}")
        return "\n".join(line.rstrip() for line in lines)

    def _summarise(self, structure: str) -> dict[str, Any]:
        scores = [(score.structures[structure], score.patient) for score in self.scores]
        summary: dict[str, Any] = {}
        for metric in VOLUME_METRICS:
            known = [(value, p) for score, p in scores if (value := getattr(score, metric)) is not None]
            summary[metric] = _summarise_patients(known) if known else None
        counts = [score.empty for score, _ in scores]
        return summary | {empty: counts.count(empty) for empty in (ABSENT, MISSED, INVENTED)}


class VolumeCollector:
    """Takes the masks of slices in any order and scores every volume once all its slices are there."""

    def __init__(self, samples: Sequence[Sample], structures: Sequence[str]) -> None:
        """Raises DataError when a slice of a volume is not among the samples, or units would differ."""
        self._structures = structures
        self._masks: dict[str, dict[int, Mask]] = {}
        self._scores: list[VolumeScore] = []
        self._unit = find_unit(samples)
        counts = Counter(sample.place.volume for sample in samples if sample.place is not None)
        for volume, count in counts.items():
            if count != len(volume.indices):
                raise DataError(
                    f"{count} of the {len(volume.indices)} slices of {volume.volume_id} are to be measured.",
                    "whole volumes",
                    "Leave --stride out, or name all slices in the split.",
                )

    def add(self, sample: Sample, predicted_hw: Mask) -> None:
        """The mask of a slice, of the slice's own size; of a frame that is no slice nothing is kept."""
        if sample.place is None:
            return
        volume = sample.place.volume
        masks = self._masks.setdefault(volume.volume_id, {})
        masks[sample.place.position] = predicted_hw
        if len(masks) == len(volume.indices):
            grid_shw = volume.restore([masks[position] for position in sorted(masks)])
            self._scores.append(score_volume(grid_shw, volume, self._structures))
            del self._masks[volume.volume_id]

    def finish(self) -> VolumeEvaluation | None:
        """The scores of all volumes; None where there were only frames."""
        return VolumeEvaluation(self._unit, tuple(self._scores)) if self._scores else None


def describe_volumes(summary: dict[str, Any]) -> dict[str, Any]:
    """What a line of results keeps of `VolumeEvaluation.to_json()`: means, units, and each structure's figures."""
    structures = {
        name: {**{m: row[m] and row[m]["mean"] for m in VOLUME_METRICS}, MISSED: row[MISSED]}
        for name, row in summary["structures"].items()
    }
    kept = {key: summary[key] for key in ("count", "unit", "surface_tolerance")}
    return {**kept, **summary["mean"], "structures": structures}


def find_unit(samples: Sequence[Sample]) -> str:
    """The unit of distances in the samples' volumes. Raises DataError where only some state their spacing."""
    volumes = {s.place.volume.volume_id: s.place.volume for s in samples if s.place is not None}
    unknown = [name for name, volume in volumes.items() if volume.spacing_mm is None]
    if unknown and len(unknown) < len(volumes):
        raise DataError(
            f"{len(unknown)} of {len(volumes)} volumes state no spacing, first {unknown[0]}.",
            "all of them or none, so that distances have one unit",
            "Evaluate them apart.",
        )
    return "voxels" if unknown else "mm"


def score_volume(predicted_shw: np.ndarray, volume: Volume, structures: Sequence[str]) -> VolumeScore:
    """Compare class ids on the volume's grid with its labels. `structures` names classes 1, 2, … in order."""
    true_shw = volume.load_labels()
    scores = {
        name: score_structure(predicted_shw == class_id, true_shw == class_id, volume.spacing_mm)
        for class_id, name in enumerate(structures, start=1)
    }
    return VolumeScore(volume.volume_id, volume.patient, scores)


def score_structure(
    predicted: Voxels, true: Voxels, spacing_mm: tuple[float, float, float] | None
) -> StructureScore:
    """Dice, HD95 (the larger of both directed 95th percentiles) and NSD (by area of the surfaces) of boolean masks."""
    if not predicted.any() or not true.any():
        if not predicted.any() and not true.any():
            return StructureScore(None, None, None, ABSENT)
        return StructureScore(0.0, None, 0.0, MISSED if true.any() else INVENTED)
    dice = 2 * int((predicted & true).sum()) / (int(predicted.sum()) + int(true.sum()))
    hd95, nsd = _measure_surfaces(*_cut_to_content(predicted, true), spacing_mm)
    return StructureScore(dice, hd95, nsd)


def _measure_surfaces(
    predicted: Voxels, true: Voxels, spacing_mm: tuple[float, float, float] | None
) -> tuple[float, float]:
    import torch  # here, because these two take seconds and the command line must not
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    spacing = spacing_mm or (1.0, 1.0, 1.0)
    tolerance = TOLERANCE_VOXELS if spacing_mm is None else TOLERANCE_MM
    pair = [torch.from_numpy(mask)[None, None] for mask in (predicted, true)]
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # MONAI's, of its own code
        hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
        nsd = compute_surface_dice(
            *pair, class_thresholds=[tolerance], include_background=True, spacing=spacing, use_subvoxels=True
        )
    return float(hd95), float(nsd)


def _cut_to_content(predicted: Voxels, true: Voxels) -> tuple[Voxels, Voxels]:
    """Both masks without what is empty in both, save a margin: what touches the border has a surface there."""
    places = np.argwhere(predicted | true)
    box = tuple(
        slice(low, high + 1) for low, high in zip(places.min(axis=0), places.max(axis=0), strict=True)
    )
    return np.pad(predicted[box], 1), np.pad(true[box], 1)


def _summarise_patients(known: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """Mean over volumes, and the interval of the mean over patients, whose volumes are alike."""
    patients = sorted({patient for _, patient in known})
    means = [float(np.mean([value for value, p in known if p == patient])) for patient in patients]
    interval = confidence_interval(means, [""] * len(means))
    return {"mean": float(np.mean([value for value, _ in known])), "ci95": interval}


def _mean_of(summaries: Any, metric: str) -> float | None:
    means = [summary[metric]["mean"] for summary in summaries if summary[metric] is not None]
    return float(np.mean(means)) if means else None


def _format_interval(figures: dict[str, Any] | None) -> str:
    return "-" if figures is None else "{:.3f} [{:.3f}, {:.3f}]".format(figures["mean"], *figures["ci95"])
