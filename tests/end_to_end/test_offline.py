"""The offline command as a process, and its masks against those of the running service."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from service.client import Client
from service.contract.geometry import Image
from service.contract.masks import from_png
from service.recording import VideoWriter

REPOSITORY = Path(__file__).resolve().parents[2]


def surgseg(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=150, check=False)


def make_picture(seed: int, height: int, width: int) -> Image:
    noise = np.random.default_rng(seed).integers(
        0, 256, (max(2, height // 20), max(2, width // 20), 3), dtype=np.uint8
    )
    return np.ascontiguousarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def test_the_offline_mask_equals_the_service_s_answer(
    server: Any, small_bundle: Path, tmp_path: Path
) -> None:
    sizes = [(288, 512), (480, 854), (720, 1280), (601, 403), (33, 700), (1080, 1080)]
    for seed, (height, width) in enumerate(sizes):
        path = tmp_path / "in" / f"{seed}.{'png' if seed % 2 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), make_picture(seed, height, width))
    done = surgseg("segment", tmp_path / "in", "--out", tmp_path / "out", "--bundle", small_bundle)
    assert done.returncode == 0, done.stderr
    with Client(server.url) as client:
        for path in sorted((tmp_path / "in").iterdir()):
            offline_hw = from_png((tmp_path / "out" / "masks" / f"{path.stem}.png").read_bytes())
            assert np.array_equal(offline_hw, client.segment(path, size="source").mask_hw), path.name
            assert 0 < offline_hw.mean() < 1


def test_real_frames_give_the_same_masks_offline_and_online(
    server: Any, small_bundle: Path, tmp_path: Path, data_folder: Path
) -> None:
    frames = sorted((data_folder / "intermountain").rglob("*.jpg"))[:3]
    if not frames:
        pytest.skip("there are no frames of intermountain here")
    for frame in frames:
        done = surgseg("segment", frame, "--out", tmp_path, "--bundle", small_bundle, "--no-overlay")
        assert done.returncode == 0, done.stderr
        with Client(server.url) as client:
            expected_hw = client.segment(frame).mask_hw
        assert np.array_equal(from_png((tmp_path / "masks" / f"{frame.stem}.png").read_bytes()), expected_hw)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("absent.png",), "There is no absent.png"),
        (("README.md",), "README.md"),
        ((".", "--backend", "abacus"), "abacus"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    small_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "README.md").write_text("words")
    command = [
        sys.executable,
        "-m",
        "service",
        "segment",
        *arguments,
        "--out",
        "out",
        "--bundle",
        str(small_bundle),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr


def test_a_flipped_byte_in_the_bundle_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(bytes(data))
    done = surgseg("segment", REPOSITORY, "--out", tmp_path / "out", "--bundle", bundle)
    assert done.returncode == 2
    assert "changed after export" in done.stderr


def test_ctrl_c_ends_quickly_quietly_and_keeps_what_is_finished(small_bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    with VideoWriter(source, Fraction(25)) as writer:
        image_hwc = make_picture(1, 720, 1280)
        for number in range(400):
            writer.write(image_hwc, number / 25)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "segment", str(source), "--out", str(out), "--bundle", str(small_bundle)],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
        # a shell's background job ignores Ctrl-C, and would hand that down to us and on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    ends_at = time.monotonic() + 120
    while len(list(out.glob("masks/clip/*.png"))) < 3 and time.monotonic() < ends_at:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in printed
    masks = sorted(out.glob("masks/clip/*.png"))
    assert 3 <= len(masks) < 400
    assert all(from_png(path.read_bytes()).shape == (720, 1280) for path in masks)
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    assert not list(out.rglob("*.mp4"))
