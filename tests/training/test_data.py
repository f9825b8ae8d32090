"""Readers and splits, on small replicas of each layout and on the real data where it is at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from service.errors import DataError
from training.data import READERS, open_data
from training.data.splits import SPLITS, hash_parts, load_split, select_part


def write_picture(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def half_mask(value: int, height: int = 24, width: int = 32) -> np.ndarray:
    mask_hw = np.zeros((height, width), np.uint8)
    mask_hw[:, : width // 2] = value
    return mask_hw


def write_endovis2015_rigid(root: Path) -> None:
    for operation in ("OP1", "OP2"):
        for number in (1, 2):
            write_picture(root / operation / "Raw" / f"img_{number:02d}_raw.png", picture())
            write_picture(root / operation / "Masks" / f"img_{number:02d}_class.png", half_mask(160))


def write_surgical_web_frames(root: Path) -> None:
    for name in ("7_001", "7_002", "9_001", "9_002"):
        write_picture(root / "images" / f"{name}.jpg", picture())
        write_picture(root / "masks" / f"{name}.png", half_mask(255))


def write_folder(root: Path) -> None:
    for name in ("train/image/a.jpg", "train/image/b.png", "train/image/deep/c.jpg", "test/image/a.jpg"):
        write_picture(root / name, picture())
        write_picture((root / name.replace("image", "mask")).with_suffix(".png"), half_mask(255))


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        for values in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
        container.mux(stream.encode(None))


def write_endovis2015_robotic(root: Path) -> None:
    gray = [np.full((48, 64, 3), 40 * index, np.uint8) for index in range(4)]
    parts_hw = half_mask(160, 48, 64)
    parts_hw[24:][parts_hw[24:] > 0] = 70  # the lower half is manipulator
    masks = [np.repeat(parts_hw[:, :, None], 3, axis=2)] * 4
    write_video(root / "Dataset1" / "Video.avi", gray)
    write_video(root / "Dataset1" / "Segmentation.avi", masks)


REPLICAS: dict[str, Callable[[Path], None]] = {
    "endovis2015_rigid": write_endovis2015_rigid,
    "surgical_web_frames": write_surgical_web_frames,
    "folder": write_folder,
    "endovis2015_robotic": write_endovis2015_robotic,
}


@pytest.mark.parametrize("reader", REPLICAS)
def test_a_reader_finds_every_frame_with_its_binary_mask(reader: str, tmp_path: Path) -> None:
    REPLICAS[reader](tmp_path)
    samples = open_data(f"{reader}:{tmp_path}")
    assert len(samples) == 4
    assert len({sample.sample_id for sample in samples}) == 4
    for sample in samples:
        image_hwc, mask_hw = sample.load()
        assert sample.sample_id.startswith(sample.video)
        assert mask_hw is not None and mask_hw.shape == image_hwc.shape[:2]
        assert set(np.unique(mask_hw)) == {0, 1}
        assert abs(mask_hw.mean() - 0.5) < 0.05


def test_video_frames_load_the_same_in_any_order(tmp_path: Path) -> None:
    write_endovis2015_robotic(tmp_path)
    samples = open_data(f"endovis2015_robotic:{tmp_path}")
    levels = [float(samples[index].load()[0].mean()) for index in (2, 0, 3, 1, 1)]
    assert levels == pytest.approx([80, 0, 120, 40, 40], abs=4)


def test_the_unlabeled_pool_has_no_masks_and_is_grouped_by_operation(tmp_path: Path) -> None:
    for name in ("00001-7-frame-20.jpg", "00001-7-frame-3.jpg", "00002-9-frame-1.jpg"):
        write_picture(tmp_path / "images" / name, picture())
    samples = open_data(f"intermountain:{tmp_path}")
    assert [sample.video for sample in samples] == ["00001-7", "00001-7", "00002-9"]
    assert samples[0].sample_id.endswith("00000003")  # in order of time, not of spelling
    assert all(sample.load()[1] is None for sample in samples)


def test_a_folder_without_masks_is_unlabeled(tmp_path: Path) -> None:
    write_picture(tmp_path / "train" / "image" / "a.jpg", picture())
    (sample,) = open_data(f"folder:{tmp_path}")
    assert sample.load()[1] is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("folder", "READER:PATH"),
        ("foldr:.", "Did you mean folder"),
        ("folder:/no/such/place", "no folder"),
    ],
)
def test_a_wrong_name_or_path_is_refused(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(spec)


@pytest.mark.parametrize("reader", READERS)
def test_an_empty_folder_is_refused(reader: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frames"):
        open_data(f"{reader}:{tmp_path}")


@pytest.mark.parametrize(
    ("reader", "lost"),
    [
        ("endovis2015_rigid", "OP2/Masks/img_01_class.png"),
        ("surgical_web_frames", "masks/9_001.png"),
        ("folder", "train/mask/b.png"),
    ],
)
def test_a_missing_mask_is_named(reader: str, lost: str, tmp_path: Path) -> None:
    REPLICAS[reader](tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(DataError, match=Path(lost).stem.removesuffix("_class")):
        open_data(f"{reader}:{tmp_path}")


def test_videos_of_unequal_length_are_refused(tmp_path: Path) -> None:
    write_endovis2015_robotic(tmp_path)
    write_video(tmp_path / "Dataset1" / "Segmentation.avi", [picture(48, 64)] * 3)
    with pytest.raises(DataError, match="frame counts differ"):
        open_data(f"endovis2015_robotic:{tmp_path}")


def test_unknown_values_a_wrong_size_and_an_unreadable_picture_name_the_file(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_picture(tmp_path / "train" / "mask" / "a.png", half_mask(77))
    write_picture(tmp_path / "train" / "mask" / "b.png", half_mask(255, 12, 16))
    (tmp_path / "test" / "image" / "a.jpg").write_bytes(b"not a picture")
    samples = {sample.sample_id: sample for sample in open_data(f"folder:{tmp_path}")}
    with pytest.raises(DataError, match=r"a\.png holds the unknown values \[77\]"):
        samples["train/a"].load()
    with pytest.raises(DataError, match="train/b: the mask is 16 x 12"):
        samples["train/b"].load()
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        samples["test/a"].load()


@pytest.mark.parametrize("path", sorted(SPLITS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_split_covers_its_data_and_cuts_by_video(path: Path, data_folder: Path) -> None:
    content = json.loads(path.read_text())
    parts = load_split(path.stem)
    ids = [sample_id for names in parts.values() for sample_id in names]
    assert len(ids) == len(set(ids))
    samples = open_data(f"{content['data']}:{data_folder / content['data']}")
    assert set(ids) == {sample.sample_id for sample in samples}
    for part in parts:
        assert len(select_part(samples, path.stem, part)) == len(parts[part])


def test_a_split_that_names_an_absent_frame_or_shares_a_video_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    samples = open_data(f"folder:{tmp_path}")
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"parts": {"train": {"train": ["a", "gone"]}}}))
    with pytest.raises(DataError, match="train/gone"):
        select_part(samples, str(split), "train")
    with pytest.raises(DataError, match="no part 'test'"):
        select_part(samples, str(split), "test")
    split.write_text(json.dumps({"parts": {"train": {"v": ["a"]}, "test": {"v": ["b"]}}}))
    with pytest.raises(DataError, match="share the video v"):
        load_split(str(split))
    with pytest.raises(DataError, match="no split"):
        load_split("nothing")


def test_the_split_hash_depends_on_ids_and_parts(tmp_path: Path) -> None:
    write_folder(tmp_path)
    samples = open_data(f"folder:{tmp_path}")
    whole = hash_parts({"train": samples, "validation": []})
    assert whole == hash_parts({"validation": [], "train": samples})
    assert whole != hash_parts({"train": samples[1:], "validation": samples[:1]})
