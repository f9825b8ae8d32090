"""Every runtime and precision of this machine, chosen by setting, in a real service of the bundle that ships."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import cv2
import httpx
import numpy as np
import pytest

from service.backends import load_backend
from service.backends.base import GOLDEN_AGREEMENT, list_precisions
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import hash_file, open_bundle
from service.contract.masks import from_png
from service.processors import computes_int8
from tests.conftest import REPOSITORY, Server
from tests.service.runtimes import RUNTIMES

BUNDLE = open_bundle(DEFAULT_BUNDLE)
CHOICES = [
    (name, precision) for name in RUNTIMES for precision in list_precisions(load_backend(name), BUNDLE)
]


@pytest.mark.parametrize(("backend", "precision"), CHOICES, ids=[" ".join(each) for each in CHOICES])
def test_the_service_runs_what_it_is_told_and_says_so(
    launch_server: Callable[..., Server], backend: str, precision: str
) -> None:
    server = launch_server("--bundle", str(DEFAULT_BUNDLE), "--backend", backend, SURGSEG_PRECISION=precision)
    running = httpx.get(f"{server.url}/v1/model").json()["running"]
    assert (running["backend"], running["precision"]) == (backend, precision)
    assert running["runtime_version"] == load_backend(backend).version
    file = "model.int8.onnx" if precision == "int8" else "model.onnx"
    assert running["sha256"] == hash_file(DEFAULT_BUNDLE / file)
    metrics = httpx.get(f"{server.url}/metrics").text
    info = next(line for line in metrics.splitlines() if line.startswith("surgseg_model_info{"))
    labels = dict(re.findall(r'(\w+)="([^"]*)"', info))
    for name in ("backend", "precision", "runtime_version", "sha256"):
        assert labels[name] == running[name]
    _, encoded = cv2.imencode(".png", BUNDLE.golden_image_hwc[:, :, ::-1])
    answer = httpx.post(f"{server.url}/v1/segment?mask=png&size=model", content=encoded.tobytes())
    mask_hw = from_png(answer.content)
    assert np.mean(mask_hw == BUNDLE.golden_mask_hw) >= GOLDEN_AGREEMENT[running["precision"]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"SURGSEG_BACKEND": "onnxruntime-cpu", "SURGSEG_PRECISION": "bfloat16"},
            "does not run this bundle in bfloat16: it cannot. Expected int8 or float32",
        ),
        ({"SURGSEG_FINGERPRINT": "0" * 64}, f"has the fingerprint {BUNDLE.fingerprint}. Expected 0000"),
        ({"SURGSEG_FINGERPRINT": "abc"}, "SURGSEG_FINGERPRINT is 'abc'"),
    ],
    ids=["precision", "another bundle", "no fingerprint"],
)
def test_what_cannot_be_served_ends_the_start_with_one_line(settings: dict[str, str], words: str) -> None:
    if "SURGSEG_BACKEND" in settings and not computes_int8():
        words = words.replace("int8 or ", "")
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--port", "0"],
        cwd=REPOSITORY,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_the_approved_bundle_is_served(launch_server: Callable[..., Server]) -> None:
    server = launch_server("--bundle", str(DEFAULT_BUNDLE), SURGSEG_FINGERPRINT=BUNDLE.fingerprint)
    assert httpx.get(f"{server.url}/v1/model").json()["running"]["fingerprint"] == BUNDLE.fingerprint
