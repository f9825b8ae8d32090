"""Readers of public data sets on small replicas in the real layout: ids, videos, classes, and what each refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from service.errors import DataError
from tests.training.replicas import (
    REPLICAS,
    as_rgb_file,
    left_half,
    picture,
    write_art_net,
    write_cholecseg8k,
    write_endovis2017,
    write_endovis2018,
    write_kvasir_instrument,
    write_picture,
    write_robotool,
)
from training.data import open_data, read_entries
from training.data.samples import Sample, read_image, read_labels
from training.data.splits import select_part


def ids_of(samples: Sequence[Sample]) -> list[str]:
    return [sample.sample_id for sample in samples]


def mask_of(sample: Sample) -> np.ndarray:
    _, mask_hw = sample.load()
    assert mask_hw is not None
    return mask_hw


def problems_of(spec: str) -> list[str]:
    return [entry.found for entry in read_entries(spec) if isinstance(entry, DataError)]


@pytest.mark.parametrize("reader", REPLICAS)
def test_every_frame_has_an_id_of_its_own_that_starts_with_its_video(reader: str, tmp_path: Path) -> None:
    REPLICAS[reader](tmp_path)
    samples = open_data(f"{reader}:{tmp_path}")
    assert len(set(ids_of(samples))) == len(samples) > 0
    assert all(sample.sample_id.rpartition("/")[0] == sample.video for sample in samples)


def test_kvasir_instrument_keeps_the_official_lists_apart(tmp_path: Path) -> None:
    write_kvasir_instrument(tmp_path)
    samples = open_data(f"kvasir_instrument:{tmp_path}")
    assert ids_of(samples) == ["train/ck01", "test/ck02", "train/ck03"]
    assert np.array_equal(mask_of(samples[0]), left_half(1))


def test_kvasir_instrument_names_what_its_lists_get_wrong(tmp_path: Path) -> None:
    write_kvasir_instrument(tmp_path)
    (tmp_path / "test.txt").write_text("ck01.jpg\nck99\n\n")
    problems = problems_of(f"kvasir_instrument:{tmp_path}")
    assert len(problems) == 3
    assert "ck01 is named twice" in problems[0]
    assert "names ck99" in problems[1]
    assert "ck02 is in no list" in problems[2]


def test_kvasir_instrument_reads_a_copy_without_lists(tmp_path: Path) -> None:
    write_kvasir_instrument(tmp_path)
    for part in ("train", "test"):
        (tmp_path / f"{part}.txt").unlink()
    assert {sample.video for sample in open_data(f"kvasir_instrument:{tmp_path}")} == {"unlisted"}


def test_endovis2017_crops_the_view_and_unites_all_tools(tmp_path: Path) -> None:
    write_endovis2017(tmp_path)
    samples = open_data(f"endovis2017:{tmp_path}")
    assert ids_of(samples)[0] == "instrument_dataset_2/frame000"  # 2 before 10
    for sample in (samples[0], samples[-1]):
        image_hwc, _ = sample.load()
        mask_hw = mask_of(sample)
        assert image_hwc.shape == (1024, 1280, 3) and image_hwc.min() == 90  # no bars
        assert mask_hw[:, :640].all() and not mask_hw[:, 640:960].any() and mask_hw[:, 960:].all()


def test_endovis2017_parts_leave_out_other_tools(tmp_path: Path) -> None:
    write_endovis2017(tmp_path)
    mask_hw = mask_of(open_data(f"endovis2017_parts:{tmp_path}")[0])
    assert [np.unique(mask_hw[:, x : x + 320]).tolist() for x in (0, 320, 640, 960)] == [[1], [2], [0], [0]]


def test_endovis2017_names_the_tool_whose_mask_is_missing(tmp_path: Path) -> None:
    write_endovis2017(tmp_path)
    lost = tmp_path / "instrument_dataset_10" / "ground_truth" / "Right_Vessel_Sealer" / "frame001.png"
    lost.unlink()
    with pytest.raises(DataError, match=r"frame001\.png has no mask.*Right_Vessel_Sealer"):
        open_data(f"endovis2017:{tmp_path}")


def test_endovis2017_refuses_frames_of_another_size(tmp_path: Path) -> None:
    write_endovis2017(tmp_path)
    path = tmp_path / "instrument_dataset_2" / "left_frames" / "frame000.png"
    write_picture(path, picture(720, 1280))
    with pytest.raises(DataError, match=r"frame000\.png is 1280 x 720"):
        open_data(f"endovis2017:{tmp_path}")[0].load()


def test_endovis2018_takes_instruments_by_the_names_of_their_colours(tmp_path: Path) -> None:
    write_endovis2018(tmp_path)
    samples = open_data(f"endovis2018:{tmp_path}")
    assert ids_of(samples)[0] == "seq_2/frame000"
    mask_hw = mask_of(samples[0])
    quarters = [np.unique(mask_hw[:, x : x + 8]).tolist() for x in (0, 8, 16, 24)]
    assert quarters == [[1], [0], [1], [0]]  # shaft, kidney, suction instrument, thread


def test_endovis2018_names_colours_that_the_table_lacks(tmp_path: Path) -> None:
    write_endovis2018(tmp_path)
    labels = np.zeros((24, 32, 3), np.uint8)
    labels[3, 4] = (3, 2, 1)
    write_picture(tmp_path / "seq_2" / "labels" / "frame001.png", labels)
    with pytest.raises(DataError, match=r"frame001\.png holds the unknown colours #010203"):
        open_data(f"endovis2018:{tmp_path}")[1].load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "gives no colours"),
        ("[", "gives no colours"),
        (json.dumps([{"name": "instrument-shaft"}]), "gives no colours"),
        (json.dumps([{"name": "kidney", "color": [1, 2, 3]}]), "names no instrument"),
    ],
)
def test_endovis2018_needs_its_table_of_colours(content: str | None, message: str, tmp_path: Path) -> None:
    write_endovis2018(tmp_path)
    (tmp_path / "labels.json").unlink()
    if content is not None:
        (tmp_path / "labels.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_data(f"endovis2018:{tmp_path}")


def test_robotool_groups_frames_by_the_video_in_their_name(tmp_path: Path) -> None:
    write_robotool(tmp_path)
    samples = open_data(f"robotool:{tmp_path}")
    assert ids_of(samples) == ["dv10/dv10_00001", "dv10/dv10_00197", "dv2/dv2_00005"]
    assert np.array_equal(mask_of(samples[2]), left_half(1))


def test_art_net_frames_without_a_tool_have_an_empty_mask(tmp_path: Path) -> None:
    write_art_net(tmp_path)
    by_id = {sample.sample_id: sample for sample in open_data(f"art_net:{tmp_path}")}
    assert len(by_id) == 8
    assert np.array_equal(mask_of(by_id["Train/pos_Train_Pos_sample_0001"]), left_half(1))
    assert not mask_of(by_id["Test/neg_Test_Neg_sample_0002"]).any()


def test_art_net_takes_the_folder_names_of_the_first_release(tmp_path: Path) -> None:
    write_picture(tmp_path / "Train" / "TrainPos" / "001.png", picture())
    write_picture(tmp_path / "Train" / "TrainPos_Tool_Mask" / "001_Tool_Mask.png", left_half(255))
    write_picture(tmp_path / "Train" / "TrainNeg" / "001.png", picture())
    assert ids_of(open_data(f"art_net:{tmp_path}")) == ["Train/pos_001", "Train/neg_001"]


def test_cholecseg8k_keeps_the_two_instruments_and_orders_frames_by_number(tmp_path: Path) -> None:
    write_cholecseg8k(tmp_path)
    samples = open_data(f"cholecseg8k:{tmp_path}")
    assert len(samples) == 4  # colour masks are no frames
    assert ids_of(samples)[:2] == ["video01/video01_00080_frame_80", "video01/video01_00080_frame_109"]
    mask_hw = mask_of(samples[0])
    assert mask_hw[:, :20].all() and not mask_hw[:, 20:].any()


def test_endovis2015_parts_tell_shaft_from_manipulator(tmp_path: Path) -> None:
    parts_hw = left_half(160)
    parts_hw[12:, :16] = 70
    write_picture(tmp_path / "OP1" / "Raw" / "img_01_raw.png", picture())
    write_picture(tmp_path / "OP1" / "Masks" / "img_01_class.png", parts_hw)
    (sample,) = open_data(f"endovis2015_rigid_parts:{tmp_path}")
    expected_hw = left_half(1)
    expected_hw[12:, :16] = 2
    assert np.array_equal(mask_of(sample), expected_hw)
    assert np.array_equal(mask_of(open_data(f"endovis2015_rigid:{tmp_path}")[0]), expected_hw > 0)


@pytest.mark.parametrize(
    ("reader", "mask", "image"),
    [
        ("kvasir_instrument", "masks/ck02.png", "images/ck02.jpg"),
        ("endovis2018", "seq_10/labels/frame001.png", "seq_10/left_frames/frame001.png"),
        ("robotool", "dv10_00197_seg.png", "dv10_00197.png"),
        (
            "art_net",
            "Test/Test_Positive_Tool_Mask/Test_Pos_sample_0002_Tool_Mask.png",
            "Test/Test_Positive/Test_Pos_sample_0002.png",
        ),
        (
            "cholecseg8k",
            "video12/video12_19500/frame_19529_endo_watershed_mask.png",
            "video12/video12_19500/frame_19529_endo.png",
        ),
    ],
)
def test_an_unknown_value_a_missing_mask_and_a_missing_picture_are_named(
    reader: str, mask: str, image: str, tmp_path: Path
) -> None:
    REPLICAS[reader](tmp_path)
    write_picture(tmp_path / mask, as_rgb_file(left_half(77)))
    samples = open_data(f"{reader}:{tmp_path}")
    with pytest.raises(DataError, match=f"{Path(mask).stem}.*unknown (values|colours)"):
        [sample.load() for sample in samples]
    kept = (tmp_path / mask).read_bytes()
    (tmp_path / mask).unlink()
    assert problems_of(f"{reader}:{tmp_path}") == [f"{tmp_path / image} has no mask."]
    (tmp_path / mask).write_bytes(kept)
    (tmp_path / image).unlink()
    assert f"{tmp_path / mask} has no picture." in problems_of(f"{reader}:{tmp_path}")


def test_files_that_mislead_are_refused(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    write_picture(whole, noise)
    assert read_image(whole).shape == (64, 64, 3)
    for size in (len(whole.read_bytes()) // 2, len(whole.read_bytes()) - 2, 0):
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(DataError, match=r"cut\.jpg cannot be read as a picture"):
            read_image(cut)
    write_picture(tmp_path / "palette.png", noise)
    with pytest.raises(DataError, match="coloured mask"):
        read_labels(tmp_path / "palette.png")
    write_picture(tmp_path / "deep.png", np.full((8, 8), 256, np.uint16))  # 0 if only its low byte were read
    with pytest.raises(DataError, match="values up to 256"):
        read_labels(tmp_path / "deep.png")


def test_data_without_videos_may_be_split_by_frame(tmp_path: Path) -> None:
    write_kvasir_instrument(tmp_path)
    samples = open_data(f"kvasir_instrument:{tmp_path}")
    parts = {"train": {"train": ["ck01"]}, "validation": {"train": ["ck03"]}, "empty": {}}
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"parts": parts}))
    with pytest.raises(DataError, match="share the video train"):
        select_part(samples, str(split), "train")
    split.write_text(json.dumps({"by": "frame", "parts": parts}))
    assert ids_of(select_part(samples, str(split), "validation")) == ["train/ck03"]
    with pytest.raises(DataError, match="empty"):
        select_part(samples, str(split), "empty")
    split.write_text(json.dumps({"by": "frame", "parts": {**parts, "test": {"train": ["ck03"]}}}))
    with pytest.raises(DataError, match="share the frame train/ck03"):
        select_part(samples, str(split), "test")
