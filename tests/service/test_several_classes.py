"""A bundle of several classes for grey pictures: every runtime, and every form of its masks, pixel for pixel."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from service.__main__ import main
from service.backends import open_backend
from service.contract.bundle import GOLDEN_MASK, hash_file, open_bundle, save_card
from service.contract.masks import MASK_FORMATS, decode_mask
from service.errors import BundleError
from service.overlay import draw_overlay
from tests.heart_bundle import CLASSES, MIDDLES, draw_heart, expected_classes, write_heart_bundle
from tests.heart_bundle import expected_confidence as expected_heart_confidence
from tests.service.runtimes import RUNTIMES


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_labels_every_grey_level(name: str, tmp_path: Path) -> None:
    write_heart_bundle(tmp_path / "bundle", has_confidence=True)
    backend = open_backend(name, open_bundle(tmp_path / "bundle"), precision="float32")
    grey_hw = np.tile(np.arange(256, dtype=np.uint8).reshape(2, 128), (64, 1))
    images_nhwc = np.repeat(grey_hw[None, :, :, None], 3, axis=3)
    masks_nhw, confidences_nhw = backend.segment_with_confidence(images_nhwc)
    np.testing.assert_array_equal(masks_nhw[0], expected_classes(grey_hw))
    assert np.abs(confidences_nhw[0].astype(int) - expected_heart_confidence(grey_hw)).max() <= 1
    backend.close()


@pytest.mark.parametrize("form", MASK_FORMATS)
def test_offline_every_form_holds_every_class(heart_bundle: Path, tmp_path: Path, form: str) -> None:
    source = tmp_path / "slice.png"
    cv2.imwrite(str(source), draw_heart(3))
    options = ["--bundle", str(heart_bundle), "--mask", form, "--no-overlay"]
    assert main(["segment", str(source), "--out", str(tmp_path / "out"), *options]) == 0
    (written,) = (tmp_path / "out" / "masks").iterdir()
    assert written.suffix == (".png" if form in ("png", "palette") else ".json")
    mask_hw = decode_mask(written.read_bytes(), form)  # type: ignore[arg-type]
    np.testing.assert_array_equal(mask_hw, expected_classes(draw_heart(3)))


def test_offline_names_a_16_bit_grey_picture_and_goes_on(
    heart_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "ct.png"), np.full((20, 20), 1064, np.uint16))
    cv2.imwrite(str(tmp_path / "in" / "mri.png"), draw_heart())
    options = ["--bundle", str(heart_bundle), "--no-overlay"]
    assert main(["segment", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options]) == 1
    assert "ct.png: The PNG is 20 x 20 with 16-bit grey samples." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["mri.png"]


def test_an_overlay_has_each_class_in_its_own_colour() -> None:
    grey_hw = draw_heart(2)
    image_hwc = np.repeat(grey_hw[:, :, None], 3, axis=2)
    drawn_hwc = draw_overlay(image_hwc, expected_classes(grey_hw), CLASSES)
    for info, level, (row, column) in zip(
        CLASSES, MIDDLES, [(8, 8), (128, 48), (64, 160), (128, 160)], strict=True
    ):
        tinted = 0.6 * level + 0.4 * np.array(info.colour) if info.id else np.full(3, level)
        assert np.abs(drawn_hwc[row, column] - tinted).max() <= 1, info.name


def test_a_golden_mask_with_a_class_that_the_card_lacks_is_refused(
    heart_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(heart_bundle, tmp_path / "bundle"))
    card = open_bundle(folder).card
    save_card(card.model_copy(update={"classes": card.classes[:3]}), folder)
    with pytest.raises(BundleError, match="class 3, which the card does not name"):
        open_bundle(folder)
    assert hash_file(folder / GOLDEN_MASK) == card.files[GOLDEN_MASK]
