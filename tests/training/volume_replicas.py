"""Small medical volumes in the layouts of their data sets, for the tests of readers and of whole-volume figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE = (3, 16, 24)  # slices, rows, columns
SPACING = (1.5, 1.25, 10.0)  # column, row, slice, as headers have it


def grey_ramp(shape: tuple[int, int, int] = SHAPE, top: float = 200.0) -> np.ndarray:
    """Values that differ along every axis, 0 to `top`."""
    return np.linspace(0, top, int(np.prod(shape))).reshape(shape)


def nested_boxes(classes: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Labels: each class a column beside the other, in the middle rows of every slice."""
    labels = np.zeros(shape, np.uint8)
    rows, columns = shape[1] // 2, shape[2] // 2
    for class_id in range(1, classes):
        column = columns - classes + 2 * class_id - 1
        labels[:, rows - 2 : rows + 2, column : column + 2] = class_id
    return labels


def write_npz(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def write_nifti(
    path: Path, values_shw: np.ndarray, spacing: tuple[float, ...] = SPACING, affine: Any = None
) -> None:
    """Axes as scanners store them, from the patient's right to the left, front to back, feet to head."""
    path.parent.mkdir(parents=True, exist_ok=True)
    turned = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(np.asarray(values_shw).T, turned), path)


def write_acdc_npz(root: Path, patients: tuple[int, ...] = (1, 2)) -> None:
    for patient in patients:
        for frame in (1, 12):
            path = root / f"patient{patient:03d}_frame{frame:02d}.npz"
            write_npz(path, image=grey_ramp().astype(np.uint8), label=nested_boxes(4))


def write_acdc_nifti(root: Path, patients: tuple[int, ...] = (1, 2)) -> None:
    for patient in patients:
        folder = root / f"patient{patient:03d}"
        for frame in (1, 12):
            stem = f"{folder.name}_frame{frame:02d}"
            write_nifti(folder / f"{stem}.nii.gz", grey_ramp().astype(np.int16))
            write_nifti(folder / f"{stem}_gt.nii.gz", nested_boxes(4))
        write_nifti(folder / f"{folder.name}_4d.nii.gz", grey_ramp().astype(np.int16))
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: NOR\nNbFrame: 30\n")


def write_openkbp_ct(root: Path) -> None:
    """Two patients; of the second one slice is left out."""
    for number, index in ((2, (5, 6, 7)), (10, (5, 6, 8))):
        image = np.zeros((3, 128, 128), np.uint16)
        image[:, 40:90, 30:80] = 1024 + 40  # body of 40 HU round (65, 55)
        label = np.zeros(image.shape, np.uint8)
        for organ in range(1, 5):
            label[:, 60:64, 40 + 6 * organ : 44 + 6 * organ] = organ
        arrays = {"voxel_mm": np.array([4.0, 4.0, 2.5]), "slice_index": np.array(index)}
        write_npz(root / f"pt_{number}.npz", image=image, label=label, **arrays)


def write_ct_nifti(root: Path, names: tuple[str, ...] = ("a", "b__early", "b__late")) -> None:
    for name in names:
        write_nifti(root / "images" / f"{name}.nii.gz", (grey_ramp(top=2000.0) - 1000).astype(np.int16))
        write_nifti(root / "labels" / f"{name}.nii.gz", nested_boxes(2))


VOLUMES = {
    "acdc": write_acdc_npz,
    "openkbp_ct": write_openkbp_ct,
    "ct_nifti": write_ct_nifti,
}
