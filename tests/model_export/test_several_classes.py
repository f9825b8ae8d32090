"""From a checkpoint of four classes to a bundle: whole chain, with figures for each class."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model_export.__main__ import main
from model_export.bundle import describe_golden
from model_export.card import read_metric
from model_export.pictures import draw_scan
from service.backends import open_backend
from service.contract.bundle import Bundle, open_bundle
from service.contract.model_card import ClassInfo, InputSize
from service.processors import computes_int8
from tests.heart_bundle import CLASSES, MIDDLES, draw_heart, expected_classes, write_heart_bundle
from training.checkpoint import Checkpoint, build_method, normalise, save_checkpoint
from training.config import DataConfig, NetworkConfig, Recipe

SIZE = InputSize(height=64, width=64)
VALUE_OF = {0: 0, 1: 160, 2: 70}
"""The values of endovis2015_rigid_parts, whose layout the tests write: 1 shaft, 2 manipulator."""


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, untrained checkpoint of four classes, each about as frequent as the others."""
    data = DataConfig(source="folder:frames")
    recipe = Recipe(
        name="four",
        labeled=(data,),
        validation=(data,),
        input_size=SIZE,
        classes=CLASSES,
        intensities="a slice from its darkest to its brightest",
        network=NetworkConfig(
            name="edge", options={"encoder": "test_efficientnet", "width": 16, "finest_stride": 4}
        ),
    )
    torch.manual_seed(8)
    method = build_method(recipe.method_name, recipe.method_options, recipe.network, len(CLASSES))
    predictor = method.predictor.eval()
    images_nchw = torch.from_numpy(np.stack([draw_scan(SIZE, seed) for seed in range(4)])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        spread = predictor(normalise(images_nchw)).std(dim=(0, 2, 3))
        predictor.classify.weight *= 2 / spread.view(-1, 1, 1, 1)
        predictor.classify.bias -= predictor(normalise(images_nchw)).mean(dim=(0, 2, 3))
    path = tmp_path_factory.mktemp("checkpoints") / "best.pt"
    state = {"method": method.state_dict()}
    save_checkpoint(Checkpoint(recipe, "surgseg-train run four", "", "", 7, 0.5, state), path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "four"
    options = ["--out", str(folder), "--limit", "4", "--confidence"]
    assert main(["bundle", str(checkpoint_path), *options]) == 0
    return open_bundle(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two pictures of the classes 0 to 2 by their grey levels; the second's label calls a half of class 2 class 1."""
    folder = tmp_path_factory.mktemp("parts")
    grey_hw = draw_heart()
    grey_hw[grey_hw == MIDDLES[3]] = MIDDLES[2]
    for number in (1, 2):
        true_hw = expected_classes(grey_hw)
        if number == 2:
            rows, columns = np.nonzero(true_hw == 2)
            wrong = columns < np.median(columns)
            true_hw[rows[wrong], columns[wrong]] = 1
        label_hw = np.vectorize(VALUE_OF.__getitem__, otypes=[np.uint8])(true_hw)
        for kind, name, picture in (("Raw", "raw", grey_hw), ("Masks", "class", label_hw)):
            path = folder / f"OP{number}" / kind / f"img_01_{name}.png"
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), picture)
    return f"endovis2015_rigid_parts:{folder}"


def test_the_bundle_has_all_classes_proven_and_in_its_golden_picture(bundle: Bundle) -> None:
    assert bundle.card.classes == CLASSES
    assert bundle.card.description.startswith("Labels right_ventricle, myocardium, left_ventricle: ")
    assert bundle.card.intensities == "a slice from its darkest to its brightest"
    assert (bundle.card.parity[0].labels_equal, bundle.card.parity[0].frames) == (
        pytest.approx(1, abs=1e-4),
        4,
    )
    assert describe_golden(bundle) == ""
    assert np.bincount(bundle.golden_mask_hw.ravel(), minlength=4).min() > 20
    assert bundle.golden_confidence_hw is not None and bundle.golden_confidence_hw.min() >= 255 // 4


def test_it_is_checked_against_its_network(
    bundle: Bundle, checkpoint_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(checkpoint_path), "--limit", "3", "--precision", "float32"]
    assert main(["check", str(bundle.folder), *options]) == 0
    assert re.search(r"parity +(100.0|99.99)\d+% of labels equal on 3 frames", capsys.readouterr().out)


def test_a_golden_mask_says_which_classes_it_lacks(heart_bundle: Path) -> None:
    whole = open_bundle(heart_bundle)
    assert describe_golden(whole) == ""
    more = (*CLASSES, ClassInfo(id=4, name="atrium", colour=(1, 2, 3)))
    lacking = Bundle(
        whole.folder, whole.card.model_copy(update={"classes": more}), whole.golden_image_hwc,
        whole.golden_mask_hw, None, whole.fingerprint,
    )  # fmt: skip
    assert "shows no atrium" in describe_golden(lacking)


def test_evaluation_has_the_dice_of_each_class_and_so_has_the_card(
    heart_bundle: Path, parts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    assert main(["evaluate", str(heart_bundle), "--data", parts, "--json", str(figures)]) == 0
    predicted_hw = expected_classes(np.where(draw_heart() == MIDDLES[3], MIDDLES[2], draw_heart()))
    ones, twos = int((predicted_hw == 1).sum()), int((predicted_hw == 2).sum())
    columns = np.nonzero(predicted_hw == 2)[1]
    moved = int((columns < np.median(columns)).sum())
    dice_of_1 = (1 + 2 * ones / (2 * ones + moved)) / 2
    dice_of_2 = (1 + 2 * (twos - moved) / (2 * twos - moved)) / 2
    content = json.loads(figures.read_text(encoding="utf-8"))
    assert content["classes"] == {
        "right_ventricle": {"frames": 2, "dice": pytest.approx(dice_of_1)},
        "myocardium": {"frames": 2, "dice": pytest.approx(dice_of_2)},
        "left_ventricle": {"frames": 0, "dice": None},
    }
    assert content["overall"]["dice"]["mean"] == pytest.approx((dice_of_1 + dice_of_2) / 2)
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["myocardium", "2", f"{dice_of_2:.3f}"] in table and ["left_ventricle", "0", "-"] in table
    assert read_metric(figures).classes == {
        "right_ventricle": pytest.approx(dice_of_1),
        "myocardium": pytest.approx(dice_of_2),
    }


def test_labels_that_the_network_has_not_are_refused(
    small_bundle: Path, parts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(small_bundle), "--data", parts]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "OP1/img_01 holds the class 2" in message and "classes 0 to 1" in message


def test_int8_keeps_the_labels_of_every_class(heart_bundle: Path, parts: str, tmp_path: Path) -> None:
    out, seen = tmp_path / "int8", tmp_path / "frames" / "image" / "1.png"
    seen.parent.mkdir(parents=True)
    cv2.imwrite(str(seen), draw_heart())
    options = ["--calibrate", f"folder:{tmp_path / 'frames'}", "--data", parts, "--out", str(out)]
    assert main(["quantize", str(heart_bundle), *options]) == 0
    bundle = open_bundle(out)
    measured = [each for each in bundle.card.parity if each.precision == "int8"]
    assert measured and all(each.labels_equal > 0.995 and each.frames == 2 for each in measured)
    if not computes_int8():
        pytest.skip("this processor has no dot product of bytes: the service does not run the graph")
    backend = open_backend("onnxruntime-cpu", bundle, precision="int8")
    mask_hw = backend.segment(np.repeat(draw_heart()[None, :, :, None], 3, axis=3))[0]
    assert (mask_hw == expected_classes(draw_heart())).mean() > 0.995
    backend.close()


def test_reliability_counts_every_class(parts: str, tmp_path: Path) -> None:
    write_heart_bundle(tmp_path / "bundle", has_confidence=True)
    figures = tmp_path / "figures.json"
    assert main(["reliability", str(tmp_path / "bundle"), "--data", parts, "--json", str(figures)]) == 0
    content = json.loads(figures.read_text(encoding="utf-8"))
    predicted_hw = expected_classes(np.where(draw_heart() == MIDDLES[3], MIDDLES[2], draw_heart()))
    columns = np.nonzero(predicted_hw == 2)[1]
    wrong = int((columns < np.median(columns)).sum())
    assert content["right"] == pytest.approx(1 - wrong / (2 * predicted_hw.size))
    assert sum(each["pixels"] for each in content["confidence_of_instrument"]["bins"]) == 2 * int(
        (predicted_hw > 0).sum()
    )
