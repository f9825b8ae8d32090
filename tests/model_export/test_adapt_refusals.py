"""What the closed loop refuses before it trains: bad frames, bad videos and bad commands, each in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from model_export.__main__ import main
from model_export.pictures import draw_pictures
from tests.model_export.small_site import SIZE, arguments_for, write_site


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path / "site")


def keep(count: int, folder: Path) -> None:
    for part in ("image", "mask"):
        for path in sorted((folder / part).iterdir())[count:]:
            path.unlink()


def write_mask(path: Path, value: int, height: int = 64) -> None:
    mask_hw = np.zeros((height, 96), np.uint8)
    mask_hw[:9] = value
    cv2.imwrite(str(path), mask_hw)


SPOILED: list[tuple[str, Callable[[Path], object], str]] = [
    ("no frames", lambda site: keep(0, site / "labeled"), "holds no frames"),
    ("few frames", lambda site: keep(4, site / "labeled"), "There are 4 labeled frames"),
    ("no folder", lambda site: shutil.rmtree(site / "labeled"), "There is no folder"),
    ("a mask is missing", lambda site: (site / "labeled/mask/3.png").unlink(), "3.png has no mask"),
    ("a picture is missing", lambda site: (site / "labeled/image/3.png").unlink(), "3.png has no picture"),
    ("no masks", lambda site: shutil.rmtree(site / "labeled/mask"), "is unlabeled"),
    ("unknown values", lambda site: write_mask(site / "labeled/mask/3.png", 77), "unknown values [77]"),
    ("another size", lambda site: write_mask(site / "labeled/mask/3.png", 255, 60), "the mask is 96 x 60"),
    ("unreadable", lambda site: (site / "labeled/image/3.png").write_bytes(b"?"), "3.png cannot be read"),
    (
        "no instrument",
        lambda site: [write_mask(path, 0) for path in (site / "labeled/mask").iterdir()],
        "hold only the classes [0]",
    ),
    ("unlabeled", lambda site: (site / "unlabeled/2.png").write_bytes(b"?"), "2.png cannot be read"),
    ("no video", lambda site: (site / "unlabeled/b.mp4").write_bytes(b"?" * 999), "b.mp4 is not a video"),
    (
        "only black",
        lambda site: [(site / f"unlabeled/{number}.png").unlink() for number in range(4)],
        "worth learning from: 0 of 1 frames kept; left out: 1 black",
    ),
    ("old bundle", lambda site: (site / "bundle/x").mkdir(parents=True), "bundle exists"),
    (
        "test is unlabeled",
        lambda site: shutil.copy(site / "test/image/1.png", site / "unlabeled/other.png"),
        "1 pictures of",
    ),
    (
        "test is labeled",
        lambda site: [
            shutil.copy(site / f"labeled/{p}/1.png", site / f"test/{p}/9.png") for p in ("image", "mask")
        ],
        "are also labeled ones",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "words"), [case[1:] for case in SPOILED], ids=[case[0] for case in SPOILED]
)
def test_what_is_wrong_with_the_frames_is_said_before_training(
    site: Path, spoil: Callable[[Path], object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(site)
    assert main(arguments_for(site, "--test", str(site / "test"))) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (site / "bundle-work" / "adapted").exists()


def test_every_bad_pair_is_named(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mask(site / "labeled" / "mask" / "3.png", 77)
    (site / "labeled" / "image" / "5.png").unlink()
    assert main(arguments_for(site)) == 2
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["problem", "problem"]
    assert "3.png" in printed.out
    assert "5.png" in printed.out
    assert "has 2 problems" in printed.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--compare"], "without --test"),
        (["--work", "SITE/bundle"], "are both"),
        (["--set", "labeled.0.weight=2"], "names what the command line gives"),
        (["--set", "stepz=3"], "Did you mean 'steps'?"),
        (["--unlabeled", "SITE/unlabeled,sahre=0.5"], "Did you mean 'share'?"),
        (["--unlabeled", "vidoe:SITE/unlabeled"], "Did you mean video?"),
        (["--start", "SITE/none.pt"], "There is no checkpoint"),
        (["--start", "SITE/labeled"], "card.json cannot be read"),
        (["--recipe", "none"], "adapt"),
    ],
)
def test_a_wrong_command_is_refused_before_training(
    site: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments_for(site, *(word.replace("SITE", str(site)) for word in more))) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (site / "bundle-work" / "adapted").exists()


def test_a_declared_transductive_test_is_permitted(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(site / "test" / "image" / "1.png", site / "unlabeled" / "other.png")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    assert main(arguments_for(site, "--test", str(site / "test"), "--transductive")) == 2
    assert "MB left" in capsys.readouterr().err  # it came as far as the training


def test_a_video_that_ends_early_is_used_as_far_as_it_goes(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = site / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=1, options={"g": "1", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = SIZE.width, SIZE.height, "yuv420p"
        for image_hwc in draw_pictures(SIZE, 8, seed=70):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_hwc, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    assert main(arguments_for(site, "--unlabeled", str(path))) == 2
    assert "clip.mp4" in caplog.text
    listed = json.loads((site / "bundle-work" / "unlabeled_2.json").read_text())
    assert 1 <= listed["frames"] < 8
