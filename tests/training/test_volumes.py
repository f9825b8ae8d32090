"""Readers of medical volumes: slices, grids, grey levels; on replicas, and on the real data where it is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
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
from training.data import describe_intensities, open_data
from training.data.samples import Sample
from training.data.splits import SPLITS, load_split, select_part, take_videos
from training.data.volumes import Volume


def volumes_of(samples: Sequence[Sample]) -> list[Volume]:
    volumes = {s.place.volume.volume_id: s.place.volume for s in samples if s.place is not None}
    return list(volumes.values())


def levels_of(sample: Sample) -> np.ndarray:
    image_hwc, _ = sample.load()
    return image_hwc[:, :, 0]


@pytest.mark.parametrize("reader", VOLUMES)
def test_a_slice_is_a_grey_picture_of_a_patient(reader: str, tmp_path: Path) -> None:
    VOLUMES[reader](tmp_path)
    samples = open_data(f"{reader}:{tmp_path}")
    assert len({sample.sample_id for sample in samples}) == len(samples) > 3
    for sample in samples:
        assert sample.sample_id.rpartition("/")[0] == sample.video
        image_hwc, mask_hw = sample.load()
        assert image_hwc.dtype == np.uint8 and mask_hw is not None and mask_hw.any()
        assert (image_hwc == image_hwc[:, :, :1]).all()


@pytest.mark.parametrize("reader", VOLUMES)
def test_masks_of_the_slices_put_back_are_the_labels_of_the_volume(reader: str, tmp_path: Path) -> None:
    VOLUMES[reader](tmp_path)
    samples = open_data(f"{reader}:{tmp_path}")
    for volume in volumes_of(samples):
        masks = [sample.load()[1] for sample in samples if sample.place and sample.place.volume is volume]
        np.testing.assert_array_equal(volume.restore(masks), volume.load_labels())


def test_both_layouts_of_acdc_give_the_same_slices(tmp_path: Path) -> None:
    write_acdc_npz(tmp_path / "npz")
    write_acdc_nifti(tmp_path / "nifti")
    ours, official = (open_data(f"acdc:{tmp_path / kind}") for kind in ("npz", "nifti"))
    assert [s.sample_id for s in ours] == [s.sample_id for s in official]
    assert ours[0].sample_id == "patient001/frame01_000"
    for one, other in zip(ours, official, strict=True):
        np.testing.assert_array_equal(one.load()[0], other.load()[0])
        np.testing.assert_array_equal(one.load()[1], other.load()[1])
    assert volumes_of(ours)[0].spacing_mm is None
    assert volumes_of(official)[0].spacing_mm == (10.0, 1.25, 1.5)  # slice, row, column


def test_a_slice_of_acdc_is_scaled_by_its_maximum_and_cut_to_the_middle_square(tmp_path: Path) -> None:
    write_acdc_npz(tmp_path)
    levels_hw = levels_of(open_data(f"acdc:{tmp_path}")[0])
    assert levels_hw.shape == (15, 15) and levels_hw.max() < 255  # the slice's maximum is in its corner
    first = grey_ramp()[0].astype(np.uint8)
    expected = (first * (255 / first.max())).round()[0:15, 4:19]
    np.testing.assert_allclose(levels_hw, expected, atol=1)


def test_ct_is_windowed_in_hounsfield_units_and_cut_round_the_body(tmp_path: Path) -> None:
    write_openkbp_ct(tmp_path)
    samples = open_data(f"openkbp_ct:{tmp_path}")
    assert [s.sample_id for s in samples][:4] == ["pt_2/ct_000", "pt_2/ct_001", "pt_2/ct_002", "pt_10/ct_000"]
    levels_hw = levels_of(samples[0])
    assert levels_hw.shape == (96, 96)
    assert levels_hw[48, 48] == round((40 + 160) / 400 * 255) and levels_hw[0, 0] == 0
    rows, columns = np.nonzero(levels_hw)
    assert (rows.min() + rows.max() + 1) // 2 == (columns.min() + columns.max() + 1) // 2 == 48


def test_slices_that_were_left_out_keep_their_place_in_the_grid(tmp_path: Path) -> None:
    write_openkbp_ct(tmp_path)
    whole, gapped = volumes_of(open_data(f"openkbp_ct:{tmp_path}"))
    assert whole.shape == (3, 128, 128) and gapped.shape == (4, 128, 128)
    assert gapped.load_labels().any(axis=(1, 2)).tolist() == [True, True, False, True]
    assert gapped.spacing_mm == (2.5, 4.0, 4.0)


def test_the_window_of_ct_nifti_is_an_option_behind_the_path(tmp_path: Path) -> None:
    write_ct_nifti(tmp_path)
    wide = open_data(f"ct_nifti:{tmp_path}?window_hu=-1000,1000")
    narrow = open_data(f"ct_nifti:{tmp_path}?window_hu=0,100&crop=8")
    values = (grey_ramp(top=2000.0) - 1000).astype(np.int16)
    np.testing.assert_allclose(levels_of(wide[1]), (values[1] + 1000) / 2000 * 255, atol=0.51)
    np.testing.assert_allclose(
        levels_of(narrow[1]), (values[1, 4:12, 8:16] / 100 * 255).clip(0, 255), atol=0.51
    )
    assert "-1000 to 1000 HU" in describe_intensities(f"ct_nifti:{tmp_path}?window_hu=-1000,1000")


def test_ct_nifti_turns_every_volume_to_one_view(tmp_path: Path) -> None:
    write_ct_nifti(tmp_path, ("a",))
    plain = nibabel.load(tmp_path / "images" / "a.nii.gz")
    for part in (
        "images",
        "labels",
    ):  # the same volume, stored from left to right, back to front, head to feet
        source = nibabel.load(tmp_path / part / "a.nii.gz")
        values = np.asarray(source.dataobj)[::-1, ::-1, ::-1]
        corner = plain.affine @ np.array([*(size - 1 for size in values.shape), 1])
        affine = np.diag([1.5, 1.25, -10.0, 1.0])
        affine[:3, 3] = corner[:3]
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / part / "turned.nii.gz")
    samples = open_data(f"ct_nifti:{tmp_path}")
    for one, other in zip(samples[:3], samples[3:], strict=True):
        np.testing.assert_array_equal(one.load()[0], other.load()[0])
        np.testing.assert_array_equal(one.load()[1], other.load()[1])


def test_patients_of_ct_nifti_may_have_several_volumes(tmp_path: Path) -> None:
    write_ct_nifti(tmp_path)
    assert {v.volume_id: v.patient for v in volumes_of(open_data(f"ct_nifti:{tmp_path}"))} == {
        "a/a": "a",
        "b/b__early": "b",
        "b/b__late": "b",
    }


def test_ct_nifti_without_labels_is_an_unlabeled_pool(tmp_path: Path) -> None:
    write_nifti(tmp_path / "images" / "a.nii", grey_ramp().astype(np.int16))
    samples = open_data(f"ct_nifti:{tmp_path}")
    assert len(samples) == SHAPE[0] and all(sample.load()[1] is None for sample in samples)


def test_a_box_that_reaches_beyond_the_slice_is_black_there(tmp_path: Path) -> None:
    write_npz(
        tmp_path / "patient001_frame01.npz",
        image=np.full((2, 8, 32), 9, np.uint8),
        label=nested_boxes(4, (2, 8, 32)),
    )
    samples = open_data(f"acdc:{tmp_path}")
    levels_hw = levels_of(samples[0])
    assert levels_hw.shape == (20, 20)
    assert (levels_hw[6:14] == 255).all() and not levels_hw[:6].any() and not levels_hw[14:].any()


def test_a_share_of_the_patients_keeps_them_whole_and_grows_by_adding(tmp_path: Path) -> None:
    write_acdc_npz(tmp_path, tuple(range(1, 11)))
    samples = open_data(f"acdc:{tmp_path}")
    kept = {share: take_videos(samples, share, seed=1) for share in (0.01, 0.2, 0.5)}
    patients = {share: {s.video for s in chosen} for share, chosen in kept.items()}
    assert [len(names) for names in patients.values()] == [1, 2, 5]
    assert patients[0.01] < patients[0.2] < patients[0.5]
    assert all(len(chosen) == 6 * len(patients[share]) for share, chosen in kept.items())
    seeds = {frozenset(s.video for s in take_videos(samples, 0.2, seed)) for seed in range(6)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    "path", [*sorted(SPLITS.glob("acdc*.json")), SPLITS / "openkbp_ct.json"], ids=lambda p: p.stem
)
def test_no_patient_is_in_two_parts(path: Path) -> None:
    patients = {part: {i.rpartition("/")[0] for i in ids} for part, ids in load_split(path.stem).items()}
    assert sum(map(len, patients.values())) == len(set().union(*patients.values()))
    assert len(set().union(*patients.values())) == (40 if "acdc" in path.stem else 74)


def test_the_labeled_patients_are_5_10_and_20_percent_of_those_that_train() -> None:
    training = {i.rpartition("/")[0] for i in load_split("acdc")["train"]}
    test = load_split("acdc")["test"]
    before: set[str] = set()
    for name, share in (("five", 0.05), ("ten", 0.1), ("twenty", 0.2)):
        parts = load_split(f"acdc_{name}")
        labeled, unlabeled = (
            {i.rpartition("/")[0] for i in parts[part]} for part in ("labeled", "unlabeled")
        )
        assert labeled | unlabeled == training and len(labeled) == round(share * len(training))
        assert before <= labeled and parts["test"] == test
        before = labeled


@pytest.mark.parametrize(
    ("reader", "classes", "samples"), [("acdc", 4, 768), ("openkbp_ct", 5, 6132)], ids=["acdc", "openkbp_ct"]
)
def test_the_committed_splits_fit_the_real_data(reader: str, classes: int, samples: int) -> None:
    folder = Path("../shared/data") / reader
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}")
    found = open_data(f"{reader}:{folder}")
    assert len(found) == samples
    for part in ("train", "validation", "test"):
        first = select_part(found, reader, part)[len(found) // 20]
        assert first.place is not None
        volume = first.place.volume
        labels_shw = volume.load_labels()
        assert set(np.unique(labels_shw)) == set(range(classes))
        masks = [s.load()[1] for s in found if s.place and s.place.volume is volume]
        np.testing.assert_array_equal(volume.restore(masks), labels_shw)  # the box cuts no label off


def test_an_unknown_option_names_the_nearest(tmp_path: Path) -> None:
    write_ct_nifti(tmp_path)
    with pytest.raises(DataError, match=r"unknown key 'windw_hu'.*Did you mean 'window_hu'"):
        open_data(f"ct_nifti:{tmp_path}?windw_hu=0,1")
    for option in ("window_hu=5", "window_hu=5,4", "window_hu=a,b", "classes=1", "spacing_mm=1,1"):
        with pytest.raises(DataError, match=f"ct_nifti: {option.partition('=')[0]}"):
            open_data(f"ct_nifti:{tmp_path}?{option}")
