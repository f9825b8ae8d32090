"""One runtime at one precision, measured in a process of its own: time, memory, labels, Dice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.frames import proof_images
from service.backends import open_backend
from service.backends.base import Backend
from service.contract.bundle import open_bundle
from service.contract.geometry import fit_image, plan_fit
from service.contract.model_card import ModelCard, Precision
from training.data import open_data
from training.evaluate import evaluate_samples

WARM_UP_RUNS = 5
_PICTURES = 32


@dataclass(frozen=True, slots=True)
class RuntimeJob:
    """What is measured. `labels` (READER:PATH) holds frames to score; drawn pictures are compared where it is None."""

    bundle: Path
    backend: str
    precision: Precision
    batch_sizes: tuple[int, ...]
    seconds: float
    threads: int | None
    labels: str | None
    is_scored: bool
    """Whether to compute masks and Dice too: once is enough, for they do not change."""


def measure_runtime(job: RuntimeJob) -> dict[str, Any]:
    """Open the bundle and measure; meant for a process that does nothing else.

    Gives `batches` ({size: {ms, frames_per_s}}), `at_once` (the calls and frames per second of several threads),
    `memory_mb` (what the process has grown by), `opened_in_s`, and where the job asks for it `masks` (uint8
    `(N, H, W)`) and `dice`. Raises BundleError or BackendError.
    """
    bundle = open_bundle(job.bundle)
    images_nhwc = _load_pictures(job, max(job.batch_sizes))
    before_mb, started_at = _resident_mb(), time.perf_counter()
    backend = open_backend(
        job.backend, bundle, batch_sizes=job.batch_sizes, threads=job.threads, precision=job.precision
    )
    try:
        backend.segment(images_nhwc[:1])
        opened_in_s = time.perf_counter() - started_at
        figures: dict[str, Any] = {
            "opened_in_s": opened_in_s,
            "batches": {
                size: _time_batches(backend, images_nhwc, size, job.seconds) for size in job.batch_sizes
            },
            "at_once": _time_at_once(backend, images_nhwc, job.seconds),
        }
        figures["memory_mb"] = _resident_mb() - before_mb
        if job.is_scored:
            figures["masks"] = np.concatenate([backend.segment(each[None]).copy() for each in images_nhwc])
            figures["dice"] = measure_dice(job.labels, backend.segment, bundle.card)
    finally:
        backend.close()
    return figures


def _load_pictures(job: RuntimeJob, at_least: int) -> NDArray[np.uint8]:
    card = open_bundle(job.bundle).card
    canvases = []
    for image_hwc in proof_images(job.labels, _PICTURES):
        height, width = image_hwc.shape[:2]
        canvases.append(fit_image(image_hwc, plan_fit(height, width, card.input_size, card.fit)))
    return np.stack([canvases[index % len(canvases)] for index in range(max(at_least, len(canvases)))])


def _time_batches(
    backend: Backend, images_nhwc: NDArray[np.uint8], size: int, seconds: float
) -> dict[str, float]:
    durations_ms = [
        1e3 * passed_s for passed_s in _repeat(lambda: backend.segment(images_nhwc[:size]), seconds)
    ]
    return {
        "ms": float(np.median(durations_ms)),
        "p99_ms": float(np.percentile(durations_ms, 99)),
        "frames_per_s": 1e3 * size * len(durations_ms) / float(np.sum(durations_ms)),
    }


def _time_at_once(backend: Backend, images_nhwc: NDArray[np.uint8], seconds: float) -> dict[str, float]:
    """Frames per second of `concurrency` threads, each with one picture a call, as the service has it under load."""

    def work(_: int) -> float:
        durations_s = list(_repeat(lambda: backend.segment(images_nhwc[:1]), seconds))
        return len(durations_s) / sum(durations_s)

    with ThreadPoolExecutor(backend.concurrency) as pool:
        rates = list(pool.map(work, range(backend.concurrency)))
    return {"calls": backend.concurrency, "frames_per_s": sum(rates)}


def _repeat(work: Callable[[], object], seconds: float) -> Iterator[float]:
    for _ in range(WARM_UP_RUNS):
        work()
    ends_at = time.perf_counter() + seconds
    while (started_at := time.perf_counter()) < ends_at:
        work()
        yield time.perf_counter() - started_at


def measure_dice(
    labels: str | None, segment: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], card: ModelCard
) -> float | None:
    """Mean Dice over the labeled frames of `labels` (READER:PATH); None where there are none.

    `segment` is as `Backend.segment`, for one picture.
    """
    if labels is None:
        return None
    samples = [sample for sample in open_data(labels) if sample.load_mask is not None]
    evaluation = evaluate_samples(
        segment,
        samples,
        card.input_size,
        card.fit,
        classes=len(card.classes),
        surfaces=False,
        progress=False,
    )
    return evaluation.mean_dice if evaluation.scores else None


def _resident_mb() -> float:
    with Path("/proc/self/status").open(encoding="ascii") as status:
        kilobytes = next(line for line in status if line.startswith("VmRSS")).split()[1]
    return int(kilobytes) / 1024
