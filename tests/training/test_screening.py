"""Screening: each rule on frames made for it, whole videos, and the real pool where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from service.contract.geometry import Image
from training.__main__ import main
from training.data import open_data
from training.data.samples import Sample
from training.data.screening import REASONS, Screening, find_fault, is_duplicate, screen, sign

HEIGHT, WIDTH = 240, 400


def make_tissue(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image:
    """Blotches of red, pink and yellow tissue with highlights."""
    rng = np.random.default_rng(seed)
    blotches_hw = cv2.resize(
        rng.random((18, 30)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    colours = np.array([[90, 25, 20], [215, 140, 110]])
    image_hwc = colours[0] + np.clip(blotches_hw, 0, 1)[:, :, None] * (colours[1] - colours[0])
    for x, y in rng.integers(0, (width, height), (12, 2)):
        cv2.circle(image_hwc, (int(x), int(y)), 3, (255, 245, 240), -1)
    return np.clip(image_hwc + rng.normal(0, 4, image_hwc.shape), 0, 255).astype(np.uint8)


def add_instrument(image_hwc: Image, x: int) -> Image:
    image_hwc = image_hwc.copy()
    cv2.line(image_hwc, (x, HEIGHT), (x + 60, 80), (120, 122, 126), 26)
    return image_hwc


def look_round(image_hwc: Image, radius: int = 100) -> Image:
    view_hw = np.zeros(image_hwc.shape[:2], np.uint8)
    cv2.circle(view_hw, (WIDTH // 2, HEIGHT // 2), radius, 1, -1)
    return image_hwc * view_hw[:, :, None]


def fill(*colour: int) -> Image:
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


def write_on(image_hwc: Image) -> Image:
    """A line of white text in a corner, as recorders and endoscopes write it."""
    return cv2.putText(
        image_hwc.copy(), "PATIENT 0", (8, 230), cv2.FONT_HERSHEY_PLAIN, 0.8, (255, 255, 255), 1
    )


def make_noise(grain: int = 1) -> Image:
    rng = np.random.default_rng(1)
    coarse_hwc = rng.integers(0, 256, (HEIGHT // grain, WIDTH // grain, 3), dtype=np.uint8)
    return cv2.resize(coarse_hwc, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)


def make_standby() -> Image:
    image_hwc = fill(80, 140, 205)
    cv2.rectangle(image_hwc, (180, 90), (230, 150), (200, 200, 210), -1)
    return image_hwc


def make_room() -> Image:
    """Gray things with edges and shades, a little of it skin."""
    gray_hwc = cv2.cvtColor(cv2.cvtColor(make_tissue(3), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    gray_hwc[:40, :60] = (200, 150, 130)
    return gray_hwc


def make_colour_bars() -> Image:
    bars = [
        (235, 235, 235),
        (235, 235, 16),
        (16, 235, 235),
        (16, 235, 16),
        (235, 16, 235),
        (235, 16, 16),
        (16, 16, 235),
    ]
    return np.repeat(np.array(bars, np.uint8), 57, axis=0)[None].repeat(HEIGHT, axis=0)


def make_blank() -> Image:
    """A soft shade of orange: the lens in its cap, or against a wall."""
    shade_w = np.linspace(0.6, 1.0, WIDTH)[None, :, None]
    return (np.array([230, 150, 90]) * shade_w).astype(np.uint8).repeat(HEIGHT, axis=0)


def add_smoke(image_hwc: Image) -> Image:
    return np.round(image_hwc * 0.45 + np.array([150, 155, 165]) * 0.45).astype(np.uint8)


def break_colours(image_hwc: Image) -> Image:
    """Clipped and posterised, as a bad cable or a wrong gain does."""
    return (np.clip((image_hwc.astype(int) - 60) * 3, 0, 255) // 64 * 64).astype(np.uint8)


FAULTS: dict[str, tuple[str, Image]] = {
    "black": ("black", fill(0, 0, 0)),
    "nearly black with text": ("black", write_on(fill(12, 10, 14))),
    "snow": ("noise", make_noise()),
    "coarse snow": ("noise", make_noise(3)),
    "blue screen": ("standby", fill(20, 40, 200)),
    "standby with icons": ("standby", make_standby()),
    "gray screen": ("standby", fill(128, 128, 128)),
    "room": ("outside", make_room()),
    "green drape in a round view": ("outside", look_round(make_room() // 3 * np.array([1, 3, 2], np.uint8))),
    "colour bars": ("outside", make_colour_bars()),
    "lens in a cap": ("blank", make_blank()),
    "lens in a cap, round view": ("blank", look_round(make_blank())),
}

GOOD: dict[str, Image] = {
    "tissue": make_tissue(),
    "tissue in a small round view": look_round(make_tissue(), 70),
    "tissue in half darkness": (make_tissue() * np.linspace(0.1, 0.6, WIDTH)[None, :, None]).astype(np.uint8),
    "smoke": add_smoke(make_tissue()),
    "a large instrument": add_instrument(add_instrument(make_tissue(), 100), 200),
    "broken colours": break_colours(make_tissue()),
    "blurred": cv2.GaussianBlur(make_tissue(), (0, 0), 3),
    "a menu over a corner": np.concatenate([make_tissue()[:160], fill(30, 60, 160)[160:]]),
    "4 K": make_tissue(0, 2160, 3840),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_frame_without_anything_to_learn_is_named_by_its_fault(name: str) -> None:
    reason, image_hwc = FAULTS[name]
    assert find_fault(image_hwc) == reason


@pytest.mark.parametrize("name", GOOD)
def test_a_frame_from_inside_is_kept(name: str) -> None:
    assert find_fault(GOOD[name]) is None


def compress(image_hwc: Image) -> Image:
    coded = cv2.imencode(".jpg", image_hwc, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


def add_grain(image_hwc: Image) -> Image:
    grain = np.random.default_rng(5).normal(0, 10, image_hwc.shape)
    return np.clip(image_hwc + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", [compress, add_grain, write_on], ids=lambda change: change.__name__)
@pytest.mark.parametrize("view", [add_instrument, look_round], ids=lambda view: view.__name__)
def test_the_same_view_is_a_duplicate(change: Callable[[Image], Image], view: Callable[..., Image]) -> None:
    image_hwc = view(make_tissue(), 90)
    assert is_duplicate(sign(change(image_hwc)), [sign(make_tissue(9)), sign(image_hwc)])


@pytest.mark.parametrize(
    "other",
    [
        add_instrument(make_tissue(), 200),
        make_tissue(),
        add_instrument(make_tissue(4), 100),
        np.roll(add_instrument(make_tissue(), 100), 40, axis=1),
    ],
    ids=["instrument moved", "instrument gone", "other tissue", "camera moved"],
)
def test_a_changed_view_is_none_round_or_not(other: Image) -> None:
    image_hwc = add_instrument(make_tissue(), 100)
    assert not is_duplicate(sign(other), [sign(image_hwc)])
    assert not is_duplicate(sign(look_round(other)), [sign(look_round(image_hwc))])


def test_nothing_is_a_duplicate_of_nothing() -> None:
    assert not is_duplicate(sign(make_tissue()), [])


def as_samples(videos: dict[str, list[Image]]) -> list[Sample]:
    return [
        Sample(f"{video}/{number}", video, lambda image_hwc=image_hwc: image_hwc)
        for video, frames in videos.items()
        for number, image_hwc in enumerate(frames)
    ]


def ids(samples: list[Sample]) -> list[str]:
    return [sample.sample_id for sample in samples]


def test_screening_sorts_by_reason_and_keeps_the_order() -> None:
    tissue_hwc = make_tissue()
    frames = [
        fill(0, 0, 0),
        tissue_hwc,
        compress(tissue_hwc),
        make_noise(),
        make_tissue(2),
        make_room(),
    ]
    screening = screen(as_samples({"a": frames, "b": [tissue_hwc, make_standby(), make_blank()]}))
    assert ids(screening.kept) == ["a/1", "a/4", "b/0"]  # another video's frame is no duplicate
    assert {reason: ids(samples) for reason, samples in screening.rejected.items()} == {
        "black": ["a/0"],
        "noise": ["a/3"],
        "standby": ["b/1"],
        "outside": ["a/5"],
        "blank": ["b/2"],
        "duplicate": ["a/2"],
    }
    assert screening.total == 9
    assert screening.describe() == (
        "3 of 9 frames kept; left out: 1 black, 1 noise, 1 standby, 1 outside, 1 blank, 1 duplicate"
    )


def test_a_rejected_frame_makes_no_later_one_a_duplicate_and_no_fault_hides_another() -> None:
    screening = screen(as_samples({"a": [fill(0, 0, 0), fill(0, 0, 0)]}))
    assert len(screening.rejected["black"]) == 2 and screening.kept == []
    assert Screening([]).describe() == "0 of 0 frames kept"


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eleven seconds of H.264: three black, four moving, four still, at 5 frames a second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    moving = [add_instrument(make_tissue(), 20 + 60 * second) for second in range(4)]
    seconds = [fill(0, 0, 0)] * 3 + moving + [make_tissue(7)] * 4
    path = tmp_path / "videos" / "case.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "23"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for image_hwc in seconds:
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image_hwc, format="rgb24")))
        container.mux(stream.encode())
    return path.parent


def test_black_and_still_stretches_of_a_video_are_left_out(recording: Path) -> None:
    screening = screen(open_data(f"video:{recording}"))
    assert ids(screening.kept) == [f"case/{5 * second:08d}" for second in (3, 4, 5, 6, 7)]
    assert len(screening.rejected["black"]) == 3 and len(screening.rejected["duplicate"]) == 3


def test_the_command_prints_the_counts_and_draws_a_sheet(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "out" / "sheet.png"
    assert main(["data", "screen", "video", str(recording), "--out", str(sheet)]) == 0
    assert "5 of 11 frames kept; left out: 3 black, 3 duplicate" in capsys.readouterr().out
    image_bgr = cv2.imread(str(sheet))
    assert image_bgr is not None and image_bgr.shape == (104, 12 * 160, 3)
    is_dark = [image_bgr[:90, left : left + 160].max() < 30 for left in range(0, 12 * 160, 160)]
    assert is_dark == [True] * 3 + [False] * 8 + [True]  # the rejected come first, the last tile is empty


def test_the_command_says_when_nothing_is_left_or_the_sheet_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), fill(0, 0, 0))
    assert main(["data", "screen", "video", str(tmp_path)]) == 2
    assert "keeps no frame" in capsys.readouterr().err
    assert main(["data", "screen", "video", str(tmp_path), "--out", str(tmp_path / "sheet.txt")]) == 2
    assert "sheet.txt cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_pool_is_screened_as_documented(data_folder: Path) -> None:
    screening = screen(open_data(f"intermountain:{data_folder / 'intermountain'}"))
    counts = {reason: len(screening.rejected[reason]) for reason in REASONS}
    assert counts == {"black": 23, "noise": 1, "standby": 10, "outside": 12, "blank": 5, "duplicate": 0}
    assert len(screening.kept) == 258


@pytest.mark.parametrize("data", ["endovis2015_rigid", "surgical_web_frames"])
def test_no_labeled_frame_of_an_operation_is_left_out(data: str, data_folder: Path) -> None:
    samples = list(open_data(f"{data}:{data_folder / data}"))[::8]
    assert screen(samples).describe() == f"{len(samples)} of {len(samples)} frames kept"
