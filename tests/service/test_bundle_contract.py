from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from service.contract.bundle import hash_file, open_bundle
from service.contract.model_card import ModelCard
from service.errors import BundleError
from tests.conftest import expected_confidence


@pytest.fixture
def copied(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


def edit_card(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))
    seal(folder)


def seal(folder: Path) -> None:
    (folder / "card.sha256").write_text(f"{hash_file(folder / 'card.json')}  card.json\n")


def test_a_whole_bundle_opens_with_its_golden_pair(small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    assert bundle.golden_image_hwc.shape == (288, 512, 3)
    assert bundle.golden_image_hwc.flags.c_contiguous
    expected = bundle.golden_image_hwc.astype(int).sum(axis=2) > 3 * 127
    np.testing.assert_array_equal(bundle.golden_mask_hw, expected)
    assert bundle.model_hash == hash_file(bundle.model_path)


def test_a_bundle_with_confidence_has_a_third_golden_picture(confident_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(confident_bundle)
    assert bundle.golden_confidence_hw is not None
    np.testing.assert_array_equal(bundle.golden_confidence_hw, expected_confidence(bundle.golden_image_hwc))
    copied = Path(shutil.copytree(confident_bundle, tmp_path / "bundle"))
    edit_card(copied, lambda card: card["files"].pop("golden/confidence.png"))
    with pytest.raises(BundleError, match=r"no hash for golden/confidence\.png"):
        open_bundle(copied)


def test_a_card_survives_saving(small_bundle: Path, tmp_path: Path) -> None:
    card = ModelCard.load(small_bundle / "card.json")
    card.save(tmp_path / "card.json")
    assert ModelCard.load(tmp_path / "card.json") == card


@pytest.mark.parametrize(
    "name", ["card.json", "card.sha256", "model.onnx", "golden/image.png", "golden/mask.png"]
)
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["model.onnx", "golden/image.png", "golden/mask.png"])
def test_every_flipped_byte_is_found(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    for at in (0, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        (copied / name).write_bytes(changed)
        with pytest.raises(BundleError, match="changed after export"):
            open_bundle(copied)


@pytest.mark.parametrize("name", ["card.json", "card.sha256"])
@pytest.mark.parametrize("bit", [1, 4, 32, 128])
def test_no_byte_of_the_card_or_its_seal_can_change(copied: Path, name: str, bit: int) -> None:
    data = (copied / name).read_bytes()
    for at in range(len(data)):
        (copied / name).write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        with pytest.raises(BundleError, match=r"card\.(json|sha256)"):
            open_bundle(copied)


@pytest.mark.parametrize("name", ["card.json", "card.sha256", "model.onnx", "golden/image.png"])
def test_a_file_that_was_cut_short_is_found(copied: Path, name: str) -> None:
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=r"changed after export|not a valid model card"):
        open_bundle(copied)


def test_the_seal_is_one_that_sha256sum_reads(small_bundle: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "card.sha256"], cwd=small_bundle, capture_output=True, text=True, check=True
    )
    assert done.stdout == "card.json: OK\n"


def test_the_fingerprint_is_the_hash_of_the_card(small_bundle: Path) -> None:
    assert open_bundle(small_bundle).fingerprint == hash_file(small_bundle / "card.json")


def make_first_format(folder: Path) -> None:
    """As bundles were before the seal."""

    def change(card: dict[str, Any]) -> None:
        card.update(format_version=1)
        del card["models"]
        card["parity"] = [
            {"backend": "onnxruntime", "precision": "float32", "frames": 4, "labels_equal": 1.0}
        ]

    edit_card(folder, change)
    (folder / "card.sha256").unlink()


def test_a_bundle_of_the_first_format_opens_as_one_of_the_newest(copied: Path, small_bundle: Path) -> None:
    make_first_format(copied)
    card = open_bundle(copied).card
    assert card.format_version == 2
    assert card.models == open_bundle(small_bundle).card.models
    assert [(each.backend, each.labels_equal) for each in card.parity] == [("onnxruntime-cpu", 1.0)]


def test_a_sealed_card_cannot_pass_for_one_of_the_first_format(copied: Path) -> None:
    text = (copied / "card.json").read_text()
    (copied / "card.json").write_text(text.replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(BundleError, match="changed after export"):
        open_bundle(copied)


def test_a_newer_format_says_what_to_do(copied: Path) -> None:
    edit_card(copied, lambda card: card.update(format_version=3))
    with pytest.raises(BundleError, match=r"format_version is 3; this surgseg reads 1 to 2.*install a newer"):
        open_bundle(copied)


def test_each_precision_has_its_graph_or_the_network_itself(copied: Path) -> None:
    shutil.copy(copied / "model.onnx", copied / "model.int8.onnx")
    digest = hash_file(copied / "model.int8.onnx")

    def add(card: dict[str, Any]) -> None:
        card["models"]["int8"] = {"file": "model.int8.onnx"}
        card["files"]["model.int8.onnx"] = digest

    edit_card(copied, add)
    bundle = open_bundle(copied)
    assert bundle.path_of("int8") == copied / "model.int8.onnx"
    assert bundle.hash_of("int8") == digest
    assert bundle.path_of("bfloat16") == bundle.path_of("float32") == copied / "model.onnx"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(format_version="2"), "format_version is '2'"),
        (lambda card: card.pop("format_version"), "format_version is None"),
        (lambda card: card.update(models={}), "float32 must be among them"),
        (lambda card: card["models"].update(int8={"file": "model.int8.onnx"}), "no hash for model.int8.onnx"),
        (lambda card: card.update(colour="red"), "colour"),
        (lambda card: card.pop("input_size"), "input_size"),
        (lambda card: card["classes"].reverse(), "class ids are"),
        (lambda card: card["classes"].pop(), "classes"),
        (lambda card: card["files"].pop("golden/mask.png"), "no hash for golden/mask.png"),
        (lambda card: card["files"].update({"../secret": "00"}), "outside its bundle"),
        (lambda card: card["input_size"].update(width=256), "512 x 288"),
    ],
    ids=[
        "version",
        "no version",
        "no model",
        "unhashed model",
        "unknown key",
        "no size",
        "order",
        "one class",
        "no hash",
        "outside",
        "golden size",
    ],
)
def test_a_card_that_is_not_right_says_where(
    copied: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_card(copied, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(copied)


def test_a_golden_file_that_is_no_picture_is_named(copied: Path) -> None:
    (copied / "golden/mask.png").write_bytes(b"no picture")
    digest = hash_file(copied / "golden/mask.png")
    edit_card(copied, lambda card: card["files"].update({"golden/mask.png": digest}))
    with pytest.raises(BundleError, match="not a picture"):
        open_bundle(copied)


def test_a_card_that_is_not_text_is_refused(copied: Path) -> None:
    for data in (b"\xff\xfe\x00", b"[1, 2", b""):
        (copied / "card.json").write_bytes(data)
        seal(copied)
        with pytest.raises(BundleError, match=r"card\.json"):
            open_bundle(copied)


@pytest.mark.parametrize("name", ["model.onnx", "golden/image.png"])
def test_a_link_that_leads_out_of_the_bundle_is_refused(copied: Path, name: str, tmp_path: Path) -> None:
    outside = shutil.move(copied / name, tmp_path / "outside")
    (copied / name).symlink_to(outside)
    with pytest.raises(BundleError, match=f"names {name}, outside its bundle"):
        open_bundle(copied)


def test_a_golden_picture_in_grey_becomes_rgb(copied: Path) -> None:
    grey = np.full((288, 512), 90, np.uint8)
    cv2.imwrite(str(copied / "golden/image.png"), grey)
    digest = hash_file(copied / "golden/image.png")
    edit_card(copied, lambda card: card["files"].update({"golden/image.png": digest}))
    assert open_bundle(copied).golden_image_hwc.shape == (288, 512, 3)
