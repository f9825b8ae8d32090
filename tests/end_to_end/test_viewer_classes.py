"""The viewer page with a bundle of several classes: a legend, and each class in the colour of the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.end_to_end.conftest import CHROMIUM, PAGE_WAIT_MS
from tests.end_to_end.test_viewer import read_canvas, set_opacity, state, wait_for_frames
from tests.heart_bundle import CLASSES, draw_heart, expected_classes

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


def test_the_legend_names_every_class_in_its_colour(heart_server: Any, page: Page) -> None:
    page.goto(f"{heart_server.url}/?width=640&height=360&fps=15")
    wait_for_frames(page, 3)
    items = page.locator("#classes li")
    assert items.all_inner_texts() == [info.name for info in CLASSES[1:]]
    for index, info in enumerate(CLASSES[1:]):
        colour = (
            items.nth(index).locator(".swatch").evaluate("each => getComputedStyle(each).backgroundColor")
        )
        assert colour == f"rgb({info.colour[0]}, {info.colour[1]}, {info.colour[2]})"


def test_a_picture_file_has_every_class_in_its_colour_on_its_own_pixels(
    heart_server: Any, page: Page, tmp_path: Path
) -> None:
    grey_hw = draw_heart(4)
    cv2.imwrite(str(tmp_path / "slice.png"), grey_hw)
    page.goto(f"{heart_server.url}/?autostart=0")
    page.locator("#outline").uncheck()
    set_opacity(page, 100)
    page.locator("#file").set_input_files(tmp_path / "slice.png")
    page.wait_for_function("window.surgseg.framesShown >= 2", timeout=PAGE_WAIT_MS)
    shown_hwc, mask_hw = read_canvas(page), expected_classes(grey_hw)
    assert shown_hwc.shape == (*grey_hw.shape, 3)
    # masks have a quarter of the picture's scale: what the browser interpolates at their borders is left out
    inside_hw = cv2.erode(mask_hw, np.ones((9, 9))) == cv2.dilate(mask_hw, np.ones((9, 9)))
    for info in CLASSES:
        pixels = shown_hwc[(mask_hw == info.id) & inside_hw].astype(int)
        wanted = np.array(info.colour) if info.id else np.full(3, grey_hw[0, 0])
        assert len(pixels) > 500 and np.abs(pixels - wanted).max() <= 1, info.name
    assert state(page)["source"] == "file" and state(page)["mismatches"] == 0


def test_a_picture_is_shown_again_after_a_pause_and_gives_way_to_another_source(
    heart_server: Any, page: Page, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "slice.png"), draw_heart())
    page.goto(f"{heart_server.url}/?autostart=0")
    page.locator("#file").set_input_files(tmp_path / "slice.png")
    wait_for_frames(page, 1)
    page.keyboard.press(" ")
    page.wait_for_timeout(700)
    arrived = state(page)["framesIn"]
    page.wait_for_timeout(700)
    assert state(page)["framesIn"] == arrived
    page.keyboard.press(" ")
    wait_for_frames(page, 1)
    page.locator("#source-scene").click()
    wait_for_frames(page, 3)
    assert state(page)["source"] == "scene"


def test_a_file_that_is_no_picture_is_named(heart_server: Any, page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("these are notes")
    page.goto(f"{heart_server.url}/?autostart=0")
    page.locator("#file").set_input_files(tmp_path / "notes.png")
    expect(page.locator("#message")).to_contain_text("cannot show notes.png")
