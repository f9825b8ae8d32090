"""The model alone, and a bare loop round it: what the service is measured against, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, cast

import av
import numpy as np
from av.packet import Packet
from av.video.reformatter import VideoReformatter

from service.backends import open_backend
from service.backends.base import Backend
from service.contract.bundle import Bundle
from service.contract.geometry import Fit, Image, crop_mask, fit_image, plan_fit
from service.contract.masks import encode_mask
from service.contract.video import fit_frame
from service.push import summarize
from service.streams.decoder import open_codec
from service.streams.pictures import decode_fitted
from service.wire import VIDEO_CODECS

_WARM_UP_RUNS = 10
_MOST_CANVASES = 100
_MOST_PIXELS = 50_000_000

FitPayload = Callable[[bytes], tuple[Image, Fit] | None]
"""From a payload to a canvas, uint8 RGB at the model's size, and how it lies there; None where no picture came out."""


def prepare_canvases(images: Iterable[Image], bundle: Bundle) -> list[Image]:
    """Pictures at the model's size, uint8 `(1, H, W, 3)`; up to 100."""
    canvases = []
    for image_hwc in islice(images, _MOST_CANVASES):
        fit = plan_fit(image_hwc.shape[0], image_hwc.shape[1], bundle.card.input_size, bundle.card.fit)
        canvases.append(fit_image(image_hwc, fit)[None])
    return canvases


def measure_model(
    bundle: Bundle, backend_name: str, canvases: Sequence[Image], seconds: float
) -> dict[str, Any]:
    """Time the backend alone, one prepared picture after the other."""
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


def run_bare_loop(
    bundle: Bundle, backend: Backend, payloads: Sequence[bytes], codec: str, seconds: float
) -> float:
    """Decode, fit, run, encode, one frame after the other and nothing else; gives frames per second."""
    fit_payload = open_decoder(bundle, codec)
    frames = number = 0
    started_at = now = time.perf_counter()
    while now - started_at < seconds:
        fitted = fit_payload(payloads[number % len(payloads)])
        number += 1
        if fitted is not None:
            canvas_hwc, fit = fitted
            mask_hw = backend.segment(canvas_hwc[None])[0]
            encode_mask(crop_mask(mask_hw, fit), "png")
            frames += 1
        now = time.perf_counter()
    return frames / (now - started_at)


def run_bare_loops(
    bundle: Bundle, backends: Sequence[Backend], payloads: Sequence[bytes], codec: str, seconds: float
) -> float:
    """Several bare loops at once, each with its own backend; gives frames per second of all together."""
    rates: list[float] = []
    threads = [
        threading.Thread(
            target=lambda backend=backend: rates.append(
                run_bare_loop(bundle, backend, payloads, codec, seconds)
            )
        )
        for backend in backends
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def open_decoder(bundle: Bundle, codec: str) -> FitPayload:
    """From payload to canvas by the functions that the service uses. Use it from one thread."""
    size, rule = bundle.card.input_size, bundle.card.fit
    if codec not in VIDEO_CODECS:

        def fit_picture(payload: bytes) -> tuple[Image, Fit]:
            return decode_fitted(payload, size, rule, max_pixels=_MOST_PIXELS, codec=codec)[:2]

        return fit_picture
    context, reformatter = open_codec(codec), VideoReformatter()

    def fit_unit(payload: bytes) -> tuple[Image, Fit] | None:
        try:
            frames = context.decode(Packet(payload))
        except av.error.FFmpegError:
            return None
        if not frames:
            return None
        canvas_hwc = cast(Image, np.empty((size.height, size.width, 3), np.uint8))
        return canvas_hwc, fit_frame(frames[0], size, rule, canvas_hwc, reformatter)

    return fit_unit
