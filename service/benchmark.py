"""`surgseg bench`: how fast the model is alone, and what a frame meets on its way through a running service."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from queue import Empty, Queue
from typing import Any, cast

import numpy as np

from service.backends import open_backend
from service.bundles import DEFAULT_BUNDLE
from service.client import Client
from service.contract.bundle import Bundle, open_bundle
from service.contract.geometry import Image, fit_image, plan_fit
from service.errors import InvalidRequestError, SurgsegError, UnavailableError
from service.output_files import write_whole
from service.push import PushReport, TimedPicture, format_table, push_pictures, summarize
from service.streams.synthetic import SyntheticScene
from service.streams.video import read_video
from service.wire import CODECS, Codec, encode_picture

_WARM_UP_RUNS = 10
_MAX_PICTURES = 250
_START_TIMEOUT_S = 120.0
_READY_LINE = re.compile(r"surgseg is ready at (http://\S+?)/?\s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `surgseg bench`."""
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, metavar="DIR", help="the model")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="inference runtime (auto)")
    parser.add_argument("--url", help="a running service; by default one is started for the measurement")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement (20)")
    parser.add_argument("--streams", type=int, default=1, help="streams at once (1)")
    parser.add_argument("--fps", type=float, default=25.0, help="frames a second of each stream (25)")
    parser.add_argument("--video", type=Path, metavar="FILE", help="by default the synthetic scene")
    parser.add_argument("--codec", choices=CODECS, default="jpeg", help="how frames are sent (jpeg)")
    parser.add_argument("--size", default="1280x720", help="size of the synthetic scene (1280x720)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here as well")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print a table, and write JSON where asked. Raises SurgsegError."""
    _check(arguments)
    codec = cast(Codec, arguments.codec)
    bundle = open_bundle(arguments.bundle)
    images = _load_images(arguments.video, read_size(arguments.size), arguments.fps)
    material = prepare(images, bundle, codec)
    report: dict[str, Any] = {"machine": describe_machine(), "material": material.describe(arguments.video)}
    print(f"{report['machine']['processor']}, {report['machine']['cores']} cores; {report['material']}")
    if arguments.url is None:
        report["model"] = measure_model(bundle, arguments.backend, material.canvases, arguments.seconds)
        _print_model(report["model"])
    with _running_service(arguments) as url:
        report["service"] = measure_service(
            url, material.pictures, codec, arguments.streams, arguments.fps, arguments.seconds
        )
    _print_service(report["service"])
    if arguments.json is not None:
        write_whole(arguments.json, (json.dumps(report, indent=2) + "\n").encode())
    return 0


@dataclass(slots=True)
class Material:
    """Pictures made ready beforehand, so that making them costs nothing while we measure.

    `canvases` are uint8 `(1, H, W, 3)` at the model's size, `pictures` the same frames encoded at `width` x
    `height`.
    """

    canvases: list[Image] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    width: int = 0
    height: int = 0

    def describe(self, video: Path | None) -> str:
        """What was measured on, in words."""
        name = "the synthetic scene" if video is None else video.name
        return f"{len(self.pictures)} frames of {name}, {self.width} x {self.height}"


def prepare(images: Iterable[Image], bundle: Bundle, codec: Codec) -> Material:
    """Fit and encode up to 250 pictures."""
    material = Material()
    for image_hwc in islice(images, _MAX_PICTURES):
        material.height, material.width = image_hwc.shape[:2]
        fit = plan_fit(material.height, material.width, bundle.card.input_size, bundle.card.fit)
        material.canvases.append(fit_image(image_hwc, fit)[None])
        material.pictures.append(encode_picture(image_hwc, codec))
    return material


def measure_model(bundle: Bundle, backend_name: str, canvases: list[Image], seconds: float) -> dict[str, Any]:
    """Time the backend alone, one prepared picture after the other, in this process."""
    card = bundle.card
    backend = open_backend(backend_name, bundle)
    try:
        for index in range(_WARM_UP_RUNS):
            backend.segment(canvases[index % len(canvases)])
        durations_ms: list[float] = []
        ends_at = time.perf_counter() + seconds
        while (started_at := time.perf_counter()) < ends_at:
            backend.segment(canvases[len(durations_ms) % len(canvases)])
            durations_ms.append((time.perf_counter() - started_at) * 1e3)
        return {
            "name": card.name,
            "version": card.version,
            "sha256": bundle.model_hash,
            "backend": backend.name,
            "precision": backend.precision,
            "input": [card.input_size.width, card.input_size.height],
            "runs": len(durations_ms),
            "frames_per_s": 1e3 / float(np.mean(durations_ms)),
            "ms": summarize(durations_ms),
        }
    finally:
        backend.close()


def measure_service(
    url: str, pictures: list[bytes], codec: Codec, streams: int, fps: float, seconds: float
) -> dict[str, Any]:
    """Push `streams` live streams at `fps` each, and put their answers together. Raises the first failure."""
    reports: list[PushReport] = []
    failures: list[SurgsegError] = []

    def push(index: int) -> None:
        try:
            with Client(url) as client, client.stream(codec=codec) as stream:
                report = push_pictures(stream, _take_turns(pictures, index, fps, seconds))
                report.settle(client, stream)
                reports.append(report)
        except SurgsegError as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(index,), daemon=True) for index in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return _merge(reports, fps)


def describe_machine() -> dict[str, Any]:
    """The processor, its cores that we may use, and the versions."""
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def read_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT as (width, height)."""
    found = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not found:
        raise InvalidRequestError(
            f"--size is {text!r}.", "WIDTHxHEIGHT, such as 1280x720", "Change the option."
        )
    return int(found[1]), int(found[2])


def _check(arguments: argparse.Namespace) -> None:
    for name, most in {"seconds": 3600, "streams": 256, "fps": 1000}.items():
        if not 0 < (value := getattr(arguments, name)) <= most:
            raise InvalidRequestError(
                f"--{name} is {value}.", f"above 0, at most {most}", "Change the option."
            )


def _load_images(video: Path | None, size: tuple[int, int], fps: float) -> Iterator[Image]:
    if video is not None:
        return (frame.image_hwc for frame in read_video(video))
    scene = SyntheticScene(*size)
    return (scene.render(index / fps)[0] for index in range(_MAX_PICTURES))


def _take_turns(pictures: list[bytes], offset: int, fps: float, seconds: float) -> Iterator[TimedPicture]:
    """Each stream starts at another picture, so that equal frames do not meet."""
    for index in range(max(1, round(fps * seconds))):
        yield index / fps, pictures[(index + offset * 7) % len(pictures)]


@contextmanager
def _running_service(arguments: argparse.Namespace) -> Iterator[str]:
    """The address of the service to measure: the one that was named, or one of our own for as long as it takes."""
    if arguments.url is not None:
        yield arguments.url
        return
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--bundle", str(arguments.bundle)]
    command += ["--backend", arguments.backend]
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "SURGSEG_MAX_STREAMS": str(max(16, arguments.streams)),
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield _wait_until_ready(process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[str]) -> str:
    """Read the service's output for as long as it lives; its pipe must never fill up."""
    lines: list[str] = []
    urls: Queue[str | None] = Queue()

    def read() -> None:
        with process.stdout or nullcontext(()) as output:
            for line in output:
                lines.append(line)
                if found := _READY_LINE.search(line):
                    urls.put(found[1])
        urls.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        url = urls.get(timeout=_START_TIMEOUT_S)
    except Empty:
        url = None
    if url is None:
        last = lines[-1].strip() if lines else "it printed nothing"
        raise UnavailableError(f"The service did not start: {last}", "one that starts", "See its message.")
    return url


def _merge(reports: list[PushReport], fps: float) -> dict[str, Any]:
    """All streams' answers together. Every frame received is answered, dropped by cause, or skipped on the way."""
    dropped: Counter[str] = Counter()
    stages: dict[str, list[float]] = {}
    for report in reports:
        dropped.update(report.dropped)
        for stage, values in report.stages_ms.items():
            stages.setdefault(stage, []).extend(values)
    stages["in the service"] = [value for report in reports for value in report.service_ms]
    stages["round trip"] = [value for report in reports for value in report.round_trip_ms]
    answered = sum(report.answered for report in reports)
    elapsed_s = max(report.elapsed_s for report in reports)
    return {
        "streams": len(reports),
        "fps_asked": fps,
        "fps_answered": answered / elapsed_s,
        "pushed": sum(report.pushed for report in reports),
        "received": sum(report.received for report in reports),
        "answered": answered,
        "dropped": dict(dropped),
        "skipped": sum(report.skipped + report.unread for report in reports),
        "ms": {name: summarize(values) for name, values in stages.items()},
    }


def _print_model(model: dict[str, Any]) -> None:
    print(f"\n{model['name']} {model['version']} alone ({model['backend']}, {model['precision']}): "
          f"{model['frames_per_s']:.1f} frames/s")  # fmt: skip
    print(format_table({"infer": model["ms"]}))


def _print_service(service: dict[str, Any]) -> None:
    causes = ", ".join(f"{cause} {number}" for cause, number in service["dropped"].items()) or "none"
    print(f"\n{service['streams']} streams of {service['fps_asked']:g} fps through the service: "
          f"{service['fps_answered']:.1f} frames/s answered")  # fmt: skip
    print(f"received {service['received']} = answered {service['answered']} + dropped ({causes}) "
          f"+ skipped {service['skipped']}")  # fmt: skip
    print(format_table(service["ms"]))


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
