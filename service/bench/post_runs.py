"""Scenario `post-720p`: pictures posted to the service and to plain endpoints of the same network, in turns."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from service.bench.child_process import Child
from service.bench.material import make_material
from service.bench.records import PostJob, PostResult
from service.bench.running_service import start_program, start_service
from service.bench.scenarios import StreamSpec
from service.contract.masks import from_png
from service.errors import StreamError
from service.processors import available_cores
from service.push import summarize

OURS = "surgseg"
PLAIN = "plain, ONNX Runtime's own threads"
PLAIN_SINGLE = "plain, one inference thread a worker"
CLIENTS = (1, 8)
_AGREEMENT = 0.99  # the service may decode a large JPEG at a reduced scale
_GRACE_S = 60.0


def measure_posts(
    bundle: Path, backend: str, video: Path | None, spec: StreamSpec, seconds: float, rounds: int
) -> dict[str, Any]:
    """Requests per second and latency at 1 and 8 clients, `rounds` measurements of `seconds` each, in turns.

    The plain endpoint is run in the two ways that suggest themselves, and the better one counts. All endpoints must
    give the same mask of the first picture, or StreamError is raised.
    """
    pictures = tuple(make_material(spec, video))
    with ExitStack() as stack:
        urls = _start(stack, bundle, backend)
        runs: dict[int, dict[str, list[dict[str, Any]]]] = {
            clients: {name: [] for name in urls} for clients in CLIENTS
        }
        masks: dict[str, bytes] = {}
        for _ in range(rounds):
            for clients in CLIENTS:
                for name, url in urls.items():
                    result = _post(PostJob(url, pictures, clients, seconds))
                    masks.setdefault(name, result.first_answer)
                    runs[clients][name].append(_describe(result))
            _check_same(masks)
    return {
        "material": spec.describe(),
        "clients": {str(clients): _compare(runs[clients]) for clients in CLIENTS},
    }


def _start(stack: ExitStack, bundle: Path, backend: str) -> dict[str, str]:
    service = stack.enter_context(start_service(bundle, backend, 1, {}))
    urls = {OURS: f"{service.url}/v1/segment"}
    cores = available_cores()
    for name, threads in ((PLAIN, 0), (PLAIN_SINGLE, 1)):
        arguments = ["-m", "service.bench.plain_server", str(bundle), str(cores), str(threads)]
        plain = stack.enter_context(start_program(arguments, {}))
        urls[name] = f"{plain.url}/segment"
    return urls


def _post(job: PostJob) -> PostResult:
    with Child("service.bench.post_client", job) as child:
        result: PostResult = child.wait(job.seconds + _GRACE_S)
    if result.failures:
        raise StreamError(
            f"{job.url} refused {result.failures} of {len(result.durations_ms)} pictures.",
            "a mask for each",
            "Check its log.",
        )
    return result


def _describe(result: PostResult) -> dict[str, Any]:
    return {
        "requests_per_s": len(result.durations_ms) / result.elapsed_s,
        "ms": summarize(result.durations_ms),
        "client_cores": result.cpu_s / result.elapsed_s,
    }


def _compare(runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    medians = {name: float(np.median([run["requests_per_s"] for run in runs[name]])) for name in runs}
    best_plain = max(medians[PLAIN], medians[PLAIN_SINGLE])
    return {"runs": dict(runs), "median_requests_per_s": medians, "of_best_plain": medians[OURS] / best_plain}


def _check_same(masks: Mapping[str, bytes]) -> None:
    ours_hw = from_png(masks[OURS])
    for name, mask in masks.items():
        agreement = float((from_png(mask) == ours_hw).mean())
        if agreement < _AGREEMENT:
            raise StreamError(
                f"{name} gives {agreement:.2%} of the labels that the service gives.",
                f"at least {_AGREEMENT:.0%}: the same network",
                "Compare the versions.",
            )
