"""Fixtures that every suite shares: a small real bundle, and a real server that serves it."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import settings

# A busy machine makes any example slow now and then; pytest-timeout catches what hangs.
settings.register_profile("surgseg", deadline=None)
settings.load_profile("surgseg")

REPOSITORY = Path(__file__).resolve().parent.parent
READY_LINE = re.compile(r"surgseg is ready at (https?://\S+:\d+)/")


def pytest_configure() -> None:
    """Give each of several test processes a core of its own: PyTorch's threads wait for each other by spinning."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data beside the checkout; skips where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not here: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle, 512 x 288, whose masks a test can predict: 1 where the mean of R, G, B is over 127."""
    folder = tmp_path_factory.mktemp("bundles") / "small"
    write_small_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def confident_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_bundle` with the second output: 128 where the mean of R, G, B is 127.5, and as far above as the mean is
    from that."""
    folder = tmp_path_factory.mktemp("bundles") / "confident"
    write_small_bundle(folder, has_confidence=True)
    return folder


@pytest.fixture(scope="session")
def heart_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of four classes for grey pictures, 128 x 128, whose masks a test knows: see tests/heart_bundle.py."""
    from tests.heart_bundle import write_heart_bundle

    folder = tmp_path_factory.mktemp("bundles") / "heart"
    write_heart_bundle(folder)
    return folder


def expected_confidence(image_hwc: np.ndarray) -> np.ndarray:
    """What the model of `confident_bundle` gives for `(..., 3)`."""
    return np.rint(127.5 + np.abs(image_hwc.mean(axis=-1) - 127.5)).astype(np.uint8)


def write_small_bundle(
    folder: Path, height: int = 288, width: int = 512, has_confidence: bool = False
) -> None:
    """Write the bundle of `small_bundle` or `confident_bundle`, at any canvas size."""
    from service.contract.bundle import (
        GOLDEN_CONFIDENCE,
        GOLDEN_IMAGE,
        GOLDEN_MASK,
        hash_file,
        required_files,
        save_card,
    )
    from service.contract.model_card import ClassInfo, InputSize, ModelCard

    (folder / "golden").mkdir(parents=True)
    _write_threshold_graph(folder / "model.onnx", height, width, has_confidence)
    image_hwc = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image_hwc = cv2.blur(image_hwc, (9, 9))
    mask_hw = (image_hwc.sum(axis=2, dtype=np.int32) > 3 * 127).astype(np.uint8)
    cv2.imwrite(str(folder / GOLDEN_IMAGE), image_hwc[:, :, ::-1])
    cv2.imwrite(str(folder / GOLDEN_MASK), mask_hw)
    if has_confidence:
        cv2.imwrite(str(folder / GOLDEN_CONFIDENCE), expected_confidence(image_hwc))
    card = ModelCard(
        name="small-threshold",
        version="1",
        description="Labels bright pixels; for tests.",
        classes=(
            ClassInfo(id=0, name="background", colour=(0, 0, 0)),
            ClassInfo(id=1, name="instrument", colour=(0, 200, 255)),
        ),
        input_size=InputSize(height=height, width=width),
        network="threshold",
        method="none",
        parameters=0,
        outputs=("mask", "confidence") if has_confidence else ("mask",),
    )
    hashes = {name: hash_file(folder / name) for name in required_files(card)}
    save_card(card.model_copy(update={"files": hashes}), folder)


def _write_threshold_graph(path: Path, height: int, width: int, has_confidence: bool) -> None:
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["image"], ["image_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["image_float", "channels"], ["brightness"], keepdims=0),
        helper.make_node("Greater", ["brightness", "threshold"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["mask"], to=TensorProto.UINT8),
    ]
    outputs = ["mask"]
    if has_confidence:
        outputs.append("confidence")
        nodes += [
            helper.make_node("Div", ["brightness", "three"], ["mean"]),
            helper.make_node("Sub", ["mean", "middle"], ["offset"]),
            helper.make_node("Abs", ["offset"], ["distance"]),
            helper.make_node("Add", ["distance", "middle"], ["sureness"]),
            helper.make_node("Round", ["sureness"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["confidence"], to=TensorProto.UINT8),
        ]
    graph = helper.make_graph(
        nodes,
        "threshold",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, 3])],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", height, width]) for name in outputs],
        [
            helper.make_tensor("channels", TensorProto.INT64, [1], [3]),
            helper.make_tensor("threshold", TensorProto.FLOAT, [], [3 * 127]),
            helper.make_tensor("three", TensorProto.FLOAT, [], [3]),
            helper.make_tensor("middle", TensorProto.FLOAT, [], [127.5]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


@dataclass
class Server:
    """A running `surgseg serve`. `output` collects every line it has printed (both streams)."""

    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    def stop(self, timeout_s: float = 20.0) -> int:
        """Ask it to end (SIGTERM), wait, and give its exit code; kill it if it does not end."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def start_server(
    *arguments: str,
    ready_timeout_s: float = 60.0,
    program: Sequence[str] = ("-m", "service"),
    **environment: str,
) -> Server:
    """Start `python -m service serve ARGUMENTS` and wait for its ready line; `environment` adds variables.

    `program` is what Python runs instead of the service's own entry, for a test that prepares the process.
    """
    process = subprocess.Popen(
        [sys.executable, *program, "serve", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Server(process)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_collect, args=(server, lines), daemon=True).start()
    deadline_at = time.monotonic() + ready_timeout_s
    while not server.url:
        try:
            line = lines.get(timeout=max(0.01, deadline_at - time.monotonic()))
        except queue.Empty:
            line = None
        if line is None:
            process.kill()
            process.wait()
            raise AssertionError("the server did not become ready; it printed:\n" + "".join(server.output))
        if found := READY_LINE.search(line):
            server.url = found.group(1)
    return server


def _collect(server: Server, lines: queue.Queue[str | None]) -> None:
    assert server.process.stdout is not None
    with server.process.stdout as stream:
        for line in stream:
            server.output.append(line)
            lines.put(line)
    lines.put(None)


@pytest.fixture
def launch_server(small_bundle: Path) -> Iterator[Callable[..., Server]]:
    """A function that starts a server of the test's own: `launch_server(*arguments, **options)`.

    See `start_server` for the options.

    The small bundle and a free port are added unless the arguments name others; servers end with the test.
    """
    started: list[Server] = []

    def launch(*arguments: str, **options: Any) -> Server:
        defaults: list[str] = []
        if "--bundle" not in arguments:
            defaults += ["--bundle", str(small_bundle)]
        if "--port" not in arguments:
            defaults += ["--port", "0"]
        started.append(start_server(*defaults, *arguments, **options))
        return started[-1]

    yield launch
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(small_bundle: Path) -> Iterator[Server]:
    """A real `surgseg serve` of the small bundle on a free port: `.url`, `.ws_url`, `.process`, `.output`.

    It refuses nobody: what one test loads it with, such as polygons of noise, must not turn away the next.
    """
    running = start_server("--port", "0", "--bundle", str(small_bundle), SURGSEG_ADMISSION="0")
    yield running
    running.stop()
