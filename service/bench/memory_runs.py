"""Scenario `memory`: frames that lie in memory, through the service and through bare loops, in turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np

from service.backends import open_backend
from service.backends.base import Backend
from service.bench.material import make_material
from service.bench.model_runs import run_bare_loop, run_bare_loops
from service.bench.running_service import start_service
from service.bench.scenarios import StreamSpec
from service.client import Client
from service.contract.bundle import Bundle, open_bundle
from service.errors import SurgsegError
from service.pipeline.latest_frames import Mode
from service.pipeline.pipeline import Pipeline
from service.pipeline.pushed_stream import PushCallbacks
from service.pipeline.stream_terms import StreamTerms
from service.processors import available_cores
from service.settings import Settings
from service.streams.pushed import LOSSLESS_PUSHES
from service.telemetry import Telemetry
from service.wire import Codec

BARE = "bare loop"
BARE_EACH = "bare loops, one a core"
PIPELINE = "the service's pipeline"
SOCKET = "the service over its socket"
_START_TIMEOUT_S = 60.0
_SETTLE_S = 2.0  # a stream's first moments, in which a decoder is started, do not count
_STOP_TIMEOUT_S = 5.0


def measure_memory(
    bundle_path: Path, backend_name: str, video: Path | None, spec: StreamSpec, seconds: float, rounds: int
) -> dict[str, Any]:
    """Frames per second of each contender, `rounds` measurements of `seconds`, in turns.

    All run the same payloads through the same decoder, fit, backend and encoder. The bare loop has the service's
    inference threads and does one thing after the other; the loops one a core have one inference thread each.
    """
    bundle = open_bundle(bundle_path)
    payloads = make_material(spec, video)
    cores = available_cores()
    with ExitStack() as stack:
        whole = _open(stack, bundle, backend_name, cores)
        single = [_open(stack, bundle, backend_name, 1) for _ in range(cores)]
        pipeline = _PipelineLoop(bundle, backend_name)
        stack.callback(pipeline.stop)
        service = stack.enter_context(start_service(bundle_path, backend_name, 1, {}))
        contenders: dict[str, Callable[[float], float]] = {
            BARE: lambda s: run_bare_loop(bundle, whole, payloads, spec.codec, s),
            BARE_EACH: lambda s: run_bare_loops(bundle, single, payloads, spec.codec, s),
            PIPELINE: lambda s: pipeline.run(payloads, spec.codec, s),
            SOCKET: lambda s: run_socket(service.url, payloads, spec.codec, s),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, run in contenders.items():
                rates[name].append(run(seconds))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    return {
        "material": spec.describe(),
        "inference_threads": cores,
        "frames_per_s": rates,
        "median_frames_per_s": medians,
        "of_bare_loop": {name: medians[name] / medians[BARE] for name in (BARE_EACH, PIPELINE, SOCKET)},
    }


def run_socket(url: str, payloads: Sequence[bytes], codec: str, seconds: float) -> float:
    """Push without a pause to a lossless stream and read every mask; gives frames per second."""
    with Client(url) as client, client.stream(codec=cast(Codec, codec), mode="every") as stream:
        arrivals: list[float] = []

        def read() -> None:
            arrivals.extend(message.arrived_at for message in stream)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        ends_at = time.monotonic() + _SETTLE_S + seconds
        number = 0
        while time.monotonic() < ends_at:
            stream.push(payloads[number % len(payloads)])
            number += 1
        stream.finish()
        reader.join()
        return measure_rate(arrivals, ends_at - seconds, ends_at)


def measure_rate(arrivals: Sequence[float], begins_at: float, ends_at: float) -> float:
    """Masks per second between two instants, once everything is under way."""
    return sum(begins_at <= at < ends_at for at in arrivals) / (ends_at - begins_at)


class _PipelineLoop:
    """The service's real-time core in this process: what the service does without HTTP and sockets."""

    def __init__(self, bundle: Bundle, backend_name: str) -> None:
        self._failure: BaseException | None = None
        settings = Settings()
        self._pipeline = Pipeline(
            bundle,
            settings,
            Telemetry(settings.batch_sizes),
            self._fail,
            open_backend=lambda _, served: open_backend(
                backend_name, served, batch_sizes=settings.batch_sizes
            ),
        )
        self._pipeline.start().result(_START_TIMEOUT_S)
        self._pipeline.warm_decoders()

    def stop(self) -> None:
        self._pipeline.stop(_STOP_TIMEOUT_S)

    def run(self, payloads: Sequence[bytes], codec: str, seconds: float) -> float:
        """Push without a pause to a lossless stream and take every mask; gives frames per second."""
        room, answers = threading.Semaphore(LOSSLESS_PUSHES), threading.Semaphore(0)
        callbacks = PushCallbacks(
            on_lost=lambda sequence, error: self._fail(error),
            on_room=room.release,
            on_failure=self._fail,
            on_state=lambda state, reason: None,
        )
        stream = self._pipeline.open_pushed(codec, StreamTerms(Mode.EVERY), callbacks)
        mailbox = stream.subscribe("png", Mode.EVERY, answers.release)
        arrivals: list[float] = []
        is_over = threading.Event()

        def take() -> None:
            while not is_over.is_set():
                if answers.acquire(timeout=0.1) and mailbox.take() is not None:
                    arrivals.append(time.monotonic())

        taker = threading.Thread(target=take, daemon=True)
        taker.start()
        ends_at = time.monotonic() + _SETTLE_S + seconds
        number = 0
        while time.monotonic() < ends_at:
            if room.acquire(timeout=0.1):
                stream.push(payloads[number % len(payloads)], 0)
                number += 1
            self._raise_failure()
        is_over.set()
        stream.close()
        taker.join()
        return measure_rate(arrivals, ends_at - seconds, ends_at)

    def _fail(self, error: BaseException) -> None:
        self._failure = error

    def _raise_failure(self) -> None:
        if isinstance(self._failure, SurgsegError):
            raise self._failure
        if self._failure is not None:
            raise RuntimeError("the pipeline failed") from self._failure


def _open(stack: ExitStack, bundle: Bundle, backend_name: str, threads: int) -> Backend:
    backend = open_backend(backend_name, bundle, threads=threads)
    stack.callback(backend.close)
    return backend
