"""What is wrong with a medical volume: one clear line that names the file, and the other volumes are still read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.errors import DataError
from tests.training.volume_replicas import (
    SHAPE,
    VOLUMES,
    grey_ramp,
    nested_boxes,
    write_acdc_nifti,
    write_acdc_npz,
    write_ct_nifti,
    write_nifti,
    write_npz,
    write_openkbp_ct,
)
from training.__main__ import main
from training.data import open_data
from training.data.check import check_data


def found(spec: str) -> list[str]:
    return [problem.found for problem in check_data(spec).problems]


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize("reader", VOLUMES)
def test_replicas_are_without_fault(reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    VOLUMES[reader](tmp_path)
    assert main(["data", "check", reader, str(tmp_path)]) == 0
    assert "problems: none" in capsys.readouterr().out
    write_acdc_nifti(tmp_path / "official")
    assert found(f"acdc:{tmp_path / 'official'}") == []


def spoil_npz(path: Path, **arrays: object) -> None:
    with np.load(path) as before:
        kept = {name: before[name] for name in before.files}
    changed = {name: value for name, value in {**kept, **arrays}.items() if value is not None}
    write_npz(path, **changed)


IMAGE = grey_ramp().astype(np.uint8)
NPZ_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no labels": (lambda path: spoil_npz(path, label=None), "{path} has no labels."),
    "no image": (lambda path: spoil_npz(path, image=None), "{path} has no array 'image'."),
    "an undeclared class": (
        lambda path: spoil_npz(path, label=np.full(SHAPE, 4, np.uint8)),
        "{path} holds the undeclared classes 4.",
    ),
    "a shape that differs": (
        lambda path: spoil_npz(path, label=nested_boxes(4, (3, 16, 20))),
        "{path}: the labels are 3 x 16 x 20 voxels.",
    ),
    "two dimensions": (
        lambda path: spoil_npz(path, image=IMAGE[0], label=IMAGE[0] * 0),
        "{path}: the image has the shape (16, 24).",
    ),
    "NaN": (
        lambda path: spoil_npz(path, image=np.where(IMAGE > 100, np.nan, IMAGE)),
        "{path} holds ",
    ),
    "text": (lambda path: spoil_npz(path, image=np.full(SHAPE, "a")), "{path}: image holds <U1."),
    "a pickle": (
        lambda path: spoil_npz(path, image=np.full(SHAPE, None)),
        "{path} cannot be read: it is truncated, damaged or of another kind",
    ),
    "half a file": (cut, "{path} cannot be read: it is truncated, damaged or of another kind"),
    "damage inside": (
        lambda path: path.write_bytes(path.read_bytes()[:150] + b"\0" * 60 + path.read_bytes()[210:]),
        "{path} cannot be read: it is truncated, damaged or of another kind",
    ),
    "nothing": (lambda path: path.write_bytes(b""), "{path} cannot be read"),
}


@pytest.mark.parametrize("fault", NPZ_FAULTS)
def test_a_faulty_npz_is_one_line_that_names_it(fault: str, tmp_path: Path) -> None:
    write_acdc_npz(tmp_path)
    path = tmp_path / "patient001_frame12.npz"
    spoil, message = NPZ_FAULTS[fault]
    spoil(path)
    report = check_data(f"acdc:{tmp_path}")
    (problem,) = report.problems
    assert problem.found.startswith(message.format(path=path)) and "\n" not in str(problem)
    assert report.overall.pixels[1] > 0  # the other volumes are read


def spoil_spacing(path: Path) -> None:
    write_nifti(path, nested_boxes(4), (1.5, 1.25, 8.0))


NIFTI_FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no labels": ("_gt", Path.unlink, "{image} has no labels."),
    "another spacing": ("_gt", spoil_spacing, "{label} has the spacing 1.5 x 1.25 x 8 mm."),
    "another shape": (
        "_gt",
        lambda path: write_nifti(path, nested_boxes(4, (3, 16, 20))),
        "{label}: the labels are 3 x 16 x 20 voxels.",
    ),
    "an undeclared class": (
        "_gt",
        lambda path: write_nifti(path, nested_boxes(4) * 3),
        "{label} holds the undeclared classes 6, 9.",
    ),
    "half a class": (
        "_gt",
        lambda path: write_nifti(path, nested_boxes(4) * np.float32(0.5)),
        "{label} holds the undeclared classes 0.5, 1.5.",
    ),
    "NaN": (
        "",
        lambda path: write_nifti(path, np.full(SHAPE, np.nan, np.float32)),
        "{image} holds 1152 values that are NaN or infinite.",
    ),
    "four dimensions": (
        "",
        lambda path: write_nifti(path, np.zeros((2, *SHAPE), np.int16)),
        "{image} has the shape (24, 16, 3, 2).",
    ),
    "a file cut short": ("", lambda path: cut(path, 0.7), "{image} cannot be read"),
    "a label cut short": ("_gt", lambda path: cut(path, 0.9), "{label} cannot be read"),
    "another kind": ("", lambda path: path.write_bytes(b"no volume at all"), "{image} cannot be read"),
}


@pytest.mark.parametrize("fault", NIFTI_FAULTS)
def test_a_faulty_nifti_is_one_line_that_names_it(fault: str, tmp_path: Path) -> None:
    write_acdc_nifti(tmp_path)
    stem = tmp_path / "patient001" / "patient001_frame12"
    paths = {
        "image": stem.with_name(f"{stem.name}.nii.gz"),
        "label": stem.with_name(f"{stem.name}_gt.nii.gz"),
    }
    which, spoil, message = NIFTI_FAULTS[fault]
    spoil(paths["label" if which else "image"])
    report = check_data(f"acdc:{tmp_path}")
    (problem,) = report.problems
    assert problem.found.startswith(message.format(**paths)) and "\n" not in str(problem)
    assert report.overall.pixels[1] > 0


def test_frames_that_info_names_must_be_there(tmp_path: Path) -> None:
    write_acdc_nifti(tmp_path)
    folder = tmp_path / "patient002"
    (folder / "Info.cfg").write_text("ED: 1\nES: 13\n")
    (tmp_path / "patient001" / "Info.cfg").write_text("Group: NOR\n")
    assert found(f"acdc:{tmp_path}") == [
        f"{tmp_path / 'patient001' / 'Info.cfg'} does not name both frames.",
        f"{folder / 'Info.cfg'} names ES 13, and there is no patient002_frame13.",
    ]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"voxel_mm": np.array([4.0, 0.0, 2.5])}, "voxel_mm is [4.0, 0.0, 2.5]."),
        ({"voxel_mm": np.array([4.0, 4.0])}, "voxel_mm is [4.0, 4.0]."),
        ({"slice_index": np.array([5, 5, 6])}, "slice_index has 3 values, or they do not rise."),
        ({"slice_index": np.array([5, 6])}, "slice_index has 2 values, or they do not rise."),
    ],
)
def test_ct_must_say_where_its_voxels_are(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    write_openkbp_ct(tmp_path)
    spoil_npz(tmp_path / "pt_2.npz", **arrays)
    assert found(f"openkbp_ct:{tmp_path}") == [f"{tmp_path / 'pt_2.npz'}: {message}"]


def test_ct_nifti_names_what_does_not_match(tmp_path: Path) -> None:
    write_ct_nifti(tmp_path)
    images, labels = tmp_path / "images", tmp_path / "labels"
    (images / "a.nii.gz").unlink()
    (labels / "b__early.nii.gz").unlink()
    write_nifti(images / "c.nii.gz", grey_ramp().astype(np.int16), (1.0, 1.25, 10.0))
    write_nifti(labels / "c.nii.gz", nested_boxes(2), (1.0, 1.25, 10.0))
    assert found(f"ct_nifti:{tmp_path}?spacing_mm=1.5,1.25,10") == [
        f"{images / 'b__early.nii.gz'} has no labels.",
        f"{images / 'c.nii.gz'} has the spacing 1 x 1.25 x 10 mm.",
        f"{labels / 'a.nii.gz'} has no volume.",
    ]
    assert f"{labels / 'c.nii.gz'} has no volume." not in found(f"ct_nifti:{tmp_path}")


def test_ct_labels_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    write_ct_nifti(tmp_path, ("a",))
    moved = np.diag([-1.5, -1.25, 10.0, 1.0])
    moved[0, 3] = 30
    write_nifti(tmp_path / "labels" / "a.nii.gz", nested_boxes(2), affine=moved)
    assert found(f"ct_nifti:{tmp_path}") == [
        f"{tmp_path / 'labels' / 'a.nii.gz'} lies elsewhere in the scanner than a.nii.gz."
    ]


def test_opening_stops_at_the_first_fault_and_points_to_the_check(tmp_path: Path) -> None:
    write_acdc_npz(tmp_path)
    cut(tmp_path / "patient002_frame01.npz")
    with pytest.raises(DataError, match=f"`surgseg-train data check acdc {tmp_path}`"):
        open_data(f"acdc:{tmp_path}")
