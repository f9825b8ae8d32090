"""Starts what a Dockerfile made, as a hardened container, and asks it what a user would."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from docker.clean_root import Mounts, Running, Task, run
from docker.steps import Settings
from service.recording import VideoWriter
from service.streams.synthetic import SyntheticScene

_REPOSITORY = Path(__file__).resolve().parents[1]
_GOLDEN = _REPOSITORY / "service/bundles/default/golden"
_START_S, _STOP_S = 120.0, 30.0
_FRAMES, _FPS = 50, 25


class TrialError(Exception):
    """A step that failed, or an image that does not do what it should."""


class Container:
    """An image's root with its settings, and what a user gives it: `temporary` are folders in memory, `mounted` host
    paths, read-only, by where they are seen, `changed` variables."""

    def __init__(
        self,
        root: Path,
        settings: Settings,
        *,
        temporary: Sequence[str] = (),
        mounted: Mapping[str, Path] | None = None,
        changed: Mapping[str, str] | None = None,
    ) -> None:
        self._root = root
        self._settings = settings
        self._temporary = temporary
        self._mounted = mounted or {}
        self._changed = changed or {}

    def run(self, arguments: Sequence[str]) -> int:
        """Run the entry point with other arguments to its end; gives its exit code."""
        with self._mounts() as mounts:
            return run(self._root, self._task(arguments, self._changed), mounts)

    def serve(self, port: int) -> None:
        """Start it, wait until it is healthy, have a picture and a video segmented, stop it. Raises TrialError."""
        address = {"SURGSEG_HOST": "127.0.0.1", "SURGSEG_PORT": str(port)}
        task = self._task(self._settings.command, {**address, **self._changed})
        with self._mounts() as mounts:
            began_at = time.monotonic()
            container = Running(self._root, task, mounts)
            try:
                _wait_until_healthy(container, self._settings.health)
                print(f"healthy after {time.monotonic() - began_at:.1f} s", flush=True)
                print(_segment(f"http://127.0.0.1:{port}"), flush=True)
                _stream(f"ws://127.0.0.1:{port}")
                idle = container.execute(["surgseg-probe", "idle", "--least-s", "0", "--most-s", "10"])
            finally:
                asked_at = time.monotonic()
                code = container.stop(_STOP_S)
        print(f"SIGTERM: exit code {code} after {time.monotonic() - asked_at:.1f} s", flush=True)
        if code != 0 or idle.returncode != 0:
            raise TrialError(f"The container did not end as it should: {idle.stderr.strip() or code}")

    def _task(self, arguments: Sequence[str], changed: Mapping[str, str]) -> Task:
        settings = self._settings
        command = [*settings.entry, *arguments]
        return Task(command, settings.user, settings.folder, {**settings.environment, **changed})

    @contextmanager
    def _mounts(self) -> Iterator[Mounts]:
        """Nothing to write to but what is in memory, and the volumes, which belong to whom they do in the image."""
        with tempfile.TemporaryDirectory(prefix="surgseg-volumes-") as folder:
            volumes = {
                inside: Path(folder, str(number)) for number, inside in enumerate(self._settings.volumes)
            }
            for inside, outside in volumes.items():
                subprocess.run(["cp", "-a", str(self._root / inside.lstrip("/")), str(outside)], check=True)
            Path(folder).chmod(0o755)
            yield Mounts(self._mounted, volumes, self._temporary, is_sealed=True)


def _wait_until_healthy(container: Running, health: Sequence[str]) -> None:
    ends_at = time.monotonic() + _START_S
    said = ""
    while time.monotonic() < ends_at:
        if not container.is_running():
            raise TrialError("The container ended before it was healthy.")
        found = container.execute(health)
        if found.returncode == 0:
            return
        said = found.stderr.strip()
        time.sleep(1.0)
    raise TrialError(f"The container was not healthy within {_START_S:g} s: {said}")


def _segment(url: str) -> str:
    """Post the golden picture, compare the mask with the golden one. Raises TrialError where they differ."""
    body = (_GOLDEN / "image.png").read_bytes()
    request = urllib.request.Request(f"{url}/v1/segment?mask=png", data=body, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        mask_hw = cv2.imdecode(np.frombuffer(answer.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        timing = answer.headers["Server-Timing"]
    golden_hw = cv2.imread(str(_GOLDEN / "mask.png"), cv2.IMREAD_UNCHANGED)
    if mask_hw is None or golden_hw is None or mask_hw.shape != golden_hw.shape:
        raise TrialError("The answer is no mask of the golden picture's size.")
    equal = float(np.mean(mask_hw == golden_hw))
    if equal < 0.999:
        raise TrialError(f"{equal:.4%} of the labels are those of the golden mask.")
    return f"{equal:.4%} of the golden mask's labels; {timing}"


def _stream(url: str) -> None:
    """Push two seconds of H.264, which a decoder process in the container takes apart. Raises TrialError."""
    scene = SyntheticScene(640, 360)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "scene.mp4")
        with VideoWriter(clip, Fraction(_FPS)) as video:
            for number in range(_FRAMES):
                video.write(scene.render(number / _FPS)[0], number / _FPS)
        command = [sys.executable, "-m", "service", "stream", str(clip), "--codec", "h264", "--url", url]
        printed = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
    if printed.returncode or f"pushed {_FRAMES} " not in printed.stdout or "answered 0 " in printed.stdout:
        raise TrialError(f"The stream failed: {printed.stdout}{printed.stderr}")
    print(printed.stdout.splitlines()[0], flush=True)
