"""Label files: masks as polygons that take the place of a data set's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from service.errors import DataError
from tests.training.test_data import write_surgical_web_frames
from training.data.labels import LABELS, describe_mask, load_labels
from training.data.selection import open_frames

SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]
HOLE = [6, 6, 9, 6, 9, 9, 6, 9]


@pytest.fixture
def frames(tmp_path: Path) -> str:
    write_surgical_web_frames(tmp_path / "frames")
    return f"surgical_web_frames:{tmp_path / 'frames'}"


def write_labels(path: Path, **changes: Any) -> str:
    content = {
        "data": "surgical_web_frames",
        "frames": {"7/7_001": {"size": [24, 32], "polygons": [SQUARE, HOLE]}},
        "left_out": {"9/9_001": "too blurred to tell"},
        **changes,
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_a_named_frame_gets_the_drawn_mask_and_the_others_keep_theirs(frames: str, tmp_path: Path) -> None:
    samples = open_frames(frames, labels=write_labels(tmp_path / "labels.json"))
    masks = {sample.sample_id: sample.load()[1] for sample in samples}
    assert list(masks) == ["7/7_001", "7/7_002", "9/9_002"]
    drawn = masks["7/7_001"]
    assert drawn is not None and drawn.dtype == np.uint8
    assert drawn[5, 5] == 1 and drawn[7, 7] == 0 and drawn[20, 20] == 0
    assert set(np.unique(drawn)) == {0, 1}
    own = masks["7/7_002"]
    assert own is not None and own[:, :16].all() and not own[:, 16:].any()


def test_a_frame_without_polygons_has_no_instrument(frames: str, tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.json", frames={"7/7_001": {"size": [24, 32], "polygons": []}})
    mask_hw = open_frames(frames, labels=path)[0].load()[1]
    assert mask_hw is not None and mask_hw.shape == (24, 32) and not mask_hw.any()


def test_a_part_of_a_split_may_name_a_frame_that_is_left_out(frames: str, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"parts": {"train": {"9": ["9_001", "9_002"]}}}))
    samples = open_frames(frames, str(split), "train", write_labels(tmp_path / "labels.json"))
    assert [sample.sample_id for sample in samples] == ["9/9_002"]


def test_a_mask_of_another_size_names_the_frame(frames: str, tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.json", frames={"7/7_001": {"size": [48, 64], "polygons": []}})
    with pytest.raises(DataError, match="7/7_001: the mask is 64 x 48"):
        open_frames(frames, labels=path)[0].load()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"frames": {"7/7_009": {"size": [24, 32], "polygons": []}}}, "not there, first 7/7_009"),
        ({"left_out": {"8/8_001": "?"}}, "not there, first 8/8_001"),
        ({"frames": {"7/7_001": {"size": [24, 32], "polygons": [[1, 1, 5, 5]]}}}, "7/7_001 has a polygon"),
        ({"frames": {"7/7_001": {"size": [24, 32], "polygons": [[0, 0, 32, 0, 9, 9]]}}}, "inside 32 x 24"),
        ({"frames": {"7/7_001": {"polygons": []}}}, "not a label file"),
        ({"frames": []}, "not a label file"),
    ],
)
def test_a_label_file_that_does_not_fit_is_refused(
    frames: str, tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(DataError, match=found):
        open_frames(frames, labels=write_labels(tmp_path / "labels.json", **changes))


def test_a_label_file_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(DataError, match="no label file 'nothing'") as refused:
        load_labels("nothing")
    assert all(file.stem in str(refused.value) for file in LABELS.glob("*.json"))


def test_a_described_mask_is_drawn_again_within_a_pixel(frames: str, tmp_path: Path) -> None:
    mask_hw = np.zeros((24, 32), np.uint8)
    cv2.ellipse(mask_hw, (15, 12), (10, 7), 20, 0, 360, 1, -1)
    cv2.circle(mask_hw, (15, 12), 3, 0, -1)
    path = write_labels(tmp_path / "labels.json", frames={"7/7_001": describe_mask(mask_hw)})
    drawn = open_frames(frames, labels=path)[0].load()[1]
    assert drawn is not None and drawn[12, 15] == 0
    rim = cv2.morphologyEx(mask_hw, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    assert not ((drawn != mask_hw) & (rim == 0)).any()


@pytest.mark.parametrize("path", sorted(LABELS.glob("*.json")), ids=lambda path: path.stem)
def test_every_label_file_that_ships_can_be_read(path: Path) -> None:
    labels = load_labels(path.stem)
    assert labels.frames and not set(labels.frames) & set(labels.left_out)
