"""Whole volumes: figures worked by hand, spacing, empty structures, and the way from the command to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from service.contract.model_card import InputSize
from service.errors import DataError
from tests.training.small_runs import RECIPE
from tests.training.test_report import make, write_results
from tests.training.volume_replicas import write_acdc_nifti, write_acdc_npz, write_npz
from training.__main__ import main
from training.checkpoint import load_checkpoint
from training.config import load_recipe
from training.data import open_data
from training.evaluate import Evaluation, evaluate_samples
from training.sweep import PLAN, RESULTS
from training.sweep_config import PlannedRun
from training.sweep_run import make_run
from training.trainer import LAST, Trainer
from training.volume_scores import describe_volumes, score_structure

STRUCTURES = ("right_ventricle", "myocardium", "left_ventricle")
SIZE = InputSize(height=32, width=32)


def block(top: int = 3, depth: int = 6, left: int = 10) -> np.ndarray:
    mask_shw = np.zeros((12, 40, 40), bool)
    mask_shw[top : top + depth, 10:30, left : left + 20] = True
    return mask_shw


def test_a_block_and_a_shifted_one() -> None:
    score = score_structure(block(left=14), block(), None)
    assert score.dice == pytest.approx(16 / 20)
    assert score.hd95 == pytest.approx(4) and score.nsd is not None and 0.5 < score.nsd < 1
    same = score_structure(block(), block(), (5.0, 1.0, 1.0))
    assert (same.dice, same.hd95, same.nsd) == (1, 0, 1)


def test_distances_are_in_the_units_of_the_spacing() -> None:
    for spacing, distance in (((5.0, 1.0, 1.0), 10.0), ((1.0, 5.0, 5.0), 2.0), (None, 2.0)):
        assert score_structure(block(top=5), block(top=3), spacing).hd95 == pytest.approx(distance)
    thick, thin = ((size, 1.0, 1.0) for size in (5.0, 1.0))  # 2 slices are beyond 3 mm, or within
    assert score_structure(block(top=5), block(top=3), thick).nsd < 0.9
    assert score_structure(block(top=5), block(top=3), thin).nsd == pytest.approx(1)


def test_the_surface_at_the_border_of_the_grid_counts() -> None:
    whole = np.ones((4, 8, 8), bool)
    assert score_structure(whole, whole, None).hd95 == 0
    smaller = whole.copy()
    smaller[:, :, 6:] = False
    assert score_structure(smaller, whole, None).hd95 == pytest.approx(2)


def test_empty_structures_are_told_apart() -> None:
    nothing = np.zeros((12, 40, 40), bool)
    absent, missed, invented = (
        score_structure(predicted, true, None)
        for predicted, true in ((nothing, nothing), (nothing, block()), (block(), nothing))
    )
    assert (absent.dice, absent.hd95, absent.nsd, absent.empty) == (None, None, None, "absent")
    assert (missed.dice, missed.hd95, missed.nsd, missed.empty) == (0, None, 0, "missed")
    assert (invented.dice, invented.hd95, invented.nsd, invented.empty) == (0, None, 0, "invented")


def evaluate(root: Path, blind_to: int = 0) -> Evaluation:
    """With the labels as predictions, which are in the pictures here, save for one class."""
    write_acdc_npz(root)
    for path in root.glob("*.npz"):
        with np.load(path) as arrays:
            label = arrays["label"]
        label[:, 0] = 0
        image = label * 80
        image[:, 0, 0] = 255
        write_npz(path, image=image, label=label)

    def predict(images_nhwc: np.ndarray) -> np.ndarray:
        labels = np.round(images_nhwc[:, :, :, 0] / 80).astype(np.uint8) % 4
        labels[labels == blind_to] = 0
        return labels

    return evaluate_samples(
        predict, open_data(f"acdc:{root}"), SIZE, "letterbox", classes=4, names=STRUCTURES, progress=False
    )


def test_a_structure_that_is_never_found_is_counted_and_costs_its_share_of_the_mean(tmp_path: Path) -> None:
    summary = evaluate(tmp_path, blind_to=2).to_json()["volumes"]
    found, missed = summary["structures"]["left_ventricle"], summary["structures"]["myocardium"]
    assert (found["missed"], missed["missed"], missed["hd95"]) == (0, 4, None)
    assert missed["dice"]["mean"] == 0 and found["dice"]["mean"] > 0.8
    assert summary["mean"]["dice"] == pytest.approx(
        np.mean([summary["structures"][name]["dice"]["mean"] for name in STRUCTURES])
    )
    assert (summary["count"], summary["unit"], len(summary["per_volume"])) == (4, "voxels", 4)


def test_structures_have_a_line_each_and_empty_ones_a_dash(tmp_path: Path) -> None:
    table = evaluate(tmp_path, blind_to=2).to_table().splitlines()
    *_, myocardium = [line.split() for line in table if line.startswith("myocardium")]
    assert myocardium[1] == "4" and "-" in myocardium and myocardium[-3:] == ["0", "4", "0"]
    assert any(line.startswith("structure") and "hd95, voxels" in line for line in table)


def test_volumes_are_measured_whole_or_not_at_all(tmp_path: Path) -> None:
    write_acdc_npz(tmp_path)
    samples = open_data(f"acdc:{tmp_path}")
    with pytest.raises(DataError, match=r"2 of the 3 slices of patient001/frame01 are to be measured"):
        evaluate_samples(lambda x: x[:, :, :, 0], samples[1:], SIZE, "letterbox", classes=4, progress=False)
    write_acdc_nifti(tmp_path, (7,))
    with pytest.raises(DataError, match=r"4 of 6 volumes state no spacing, first patient001/frame01"):
        evaluate_samples(
            lambda x: x[:, :, :, 0],
            open_data(f"acdc:{tmp_path}"),
            SIZE,
            "letterbox",
            classes=4,
            progress=False,
        )


HEART = """
classes = [
  { id = 0, name = "background", colour = [0, 0, 0] },
  { id = 1, name = "right_ventricle", colour = [1, 0, 0] },
  { id = 2, name = "myocardium", colour = [2, 0, 0] },
  { id = 3, name = "left_ventricle", colour = [3, 0, 0] },
]
"""


def test_a_checkpoint_says_what_its_pictures_are_and_is_evaluated_on_volumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_acdc_nifti(tmp_path / "data")
    path = tmp_path / "heart.toml"
    path.write_text(HEART + RECIPE.replace("folder:FOLDER", f"acdc:{tmp_path / 'data'}"))
    Trainer(load_recipe(path), tmp_path / "run").run(progress=False, stop_at=2)
    again = Trainer(load_recipe(path), tmp_path / "run")
    again.resume()
    assert again.step == 2
    checkpoint = tmp_path / "run" / LAST
    assert "cardiac MRI" in load_checkpoint(checkpoint).recipe.intensities
    figures = tmp_path / "out.json"
    command = ["evaluate", str(checkpoint), "--data", f"acdc:{tmp_path / 'data'}"]
    assert main([*command, "--json", str(figures)]) == 0
    assert "hd95, mm" in capsys.readouterr().out
    assert json.loads(figures.read_text())["volumes"]["unit"] == "mm"
    assert main([*command, "--stride", "2"]) == 2
    assert "Leave --stride out" in capsys.readouterr().err


def test_a_run_of_a_sweep_has_the_figures_of_the_test_patients_volumes(tmp_path: Path) -> None:
    write_acdc_npz(tmp_path / "data", (1, 2, 3))
    names = [f"frame{frame}_{index:03d}" for frame in ("01", "12") for index in range(3)]
    patients = {"train": 1, "validation": 2, "test": 3}
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"parts": {part: {f"patient00{n}": names} for part, n in patients.items()}}))
    path = tmp_path / "heart.toml"
    text = RECIPE.replace('"folder:FOLDER"', f'"acdc:{tmp_path / "data"}"\nsplit = "{split}"\npart = "PART"')
    path.write_text(HEART + text.replace("PART", "train", 1).replace("PART", "validation", 1))
    recipe = load_recipe(path, ["steps=1"])
    line = make_run(PlannedRun("run", "supervised", 1.0, str(split), 3, recipe), tmp_path / "run")
    assert line["labeled_frames"] == 6 and set(line["videos"]) == {"patient003"}
    assert line["volumes"]["count"] == 2 and list(line["volumes"]["structures"]) == list(STRUCTURES)
    assert json.loads((tmp_path / "run" / "test.json").read_text())["volumes"]["unit"] == "voxels"


def test_the_report_shows_the_volumes_beside_the_slices(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    volumes = describe_volumes(evaluate(tmp_path / "data", blind_to=2).to_json()["volumes"])
    lines = [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]
    for line in lines:
        line["volumes"] = volumes | {"dice": line["dice"] + 0.05 * (line["method"] == "mean_teacher")}
    (folder / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (folder / PLAN).exists()
    tables, _ = make(folder)
    rows = tables.rows_of(
        "labels", "method", "runs", "3-D Dice", "Dice − supervised", "better in", *STRUCTURES
    )
    row = rows["50 %", "mean_teacher"]
    assert row[0] == "3" and row[1].startswith("0.763") and row[3] == "3 of 3"
    assert row[5] == "0.000" and row[-1] == "4.0"  # the myocardium of four volumes was missed
    assert rows["50 %", "supervised"][2:4] == ["–", "–"]
