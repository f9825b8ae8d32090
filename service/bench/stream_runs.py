"""Scenarios of live streams: each phase pushed to a service, in turns, and its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.bench.arrivals import Arrivals
from service.bench.child_process import Child
from service.bench.figures import compare_p99, describe_run
from service.bench.material import key_of, make_materials
from service.bench.records import PushJob, PushResult
from service.bench.resources import Sampler
from service.bench.running_service import RunningService, attach, start_service
from service.bench.scenarios import Phase, Scenario, StreamSpec
from service.bench.service_metrics import scrape, scrape_settled
from service.client import Client
from service.credentials import Credentials

_BEGINS_IN_S = 2.5
_GRACE_S = 60.0

Materials = Mapping[tuple[str, int, int, float], list[bytes]]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is the same for every phase: which service, and how the frames come."""

    url: str | None
    bundle: Path
    backend: str
    video: Path | None
    arrivals: Arrivals
    seconds: float
    warm_up_s: float
    seed: int = 1
    credentials: Credentials = field(default_factory=Credentials)


def measure_streams(scenario: Scenario, conditions: Conditions) -> dict[str, Any]:
    """Run the phases in turns, `rounds` times; phases whose service has the same settings share one.

    Of a running service only the phases are measured that ask for no settings of their own.
    """
    phases = [phase for phase in scenario.phases if conditions.url is None or not phase.settings]
    specs = [spec for phase in phases for spec in phase.streams]
    print(f"Making {', '.join(sorted({spec.describe() for spec in specs}))} ...", flush=True)
    materials = make_materials(specs, conditions.video)
    runs: dict[str, list[dict[str, Any]]] = {phase.name: [] for phase in phases}
    models: dict[str, Any] = {}
    for settings in _unique([dict(phase.settings) for phase in phases]):
        together = [phase for phase in phases if dict(phase.settings) == settings]
        with _open(conditions, scenario, settings) as service:
            card = _read_card(service.url, conditions.credentials)
            models = {"name": card["name"], "version": card["version"]}
            for _ in range(scenario.rounds):
                for phase in together:
                    runs[phase.name].append(_measure(phase, scenario, conditions, service, materials))
    return {
        "model": models,
        "arrivals": conditions.arrivals,
        "warm_up_s": conditions.warm_up_s,
        "material": [
            _describe_material(key, payloads, conditions.video) for key, payloads in materials.items()
        ],
        "left_out": [phase.name for phase in scenario.phases if phase not in phases],
        "phases": [
            {
                "name": phase.name,
                "settings": dict(phase.settings),
                "runs": runs[phase.name],
                "p99": p99,
            }
            for phase, p99 in zip(phases, compare_p99(list(runs.values())), strict=True)
        ],
    }


def _read_card(url: str, credentials: Credentials) -> dict[str, Any]:
    with Client(url, token=credentials.token, authority=credentials.authority) as client:
        return client.model()


def _measure(
    phase: Phase,
    scenario: Scenario,
    conditions: Conditions,
    service: RunningService,
    materials: Materials,
) -> dict[str, Any]:
    job = _make_job(phase.streams, scenario, conditions, service.url, materials)
    before = scrape(service.url, conditions.credentials)
    with ExitStack() as stack:
        child = stack.enter_context(Child("service.bench.pusher", job))
        sampler = stack.enter_context(Sampler(service.pid, child.pid))
        result: PushResult = child.wait(conditions.seconds + _GRACE_S)
    counts = scrape_settled(service.url, conditions.credentials, before)
    return describe_run(result, counts, sampler.samples, conditions.seconds, conditions.warm_up_s)


def _make_job(
    specs: tuple[StreamSpec, ...],
    scenario: Scenario,
    conditions: Conditions,
    url: str,
    materials: Materials,
) -> PushJob:
    keys = _unique([key_of(spec) for spec in specs])
    return PushJob(
        url=url,
        specs=specs,
        payloads=tuple(tuple(materials[key]) for key in keys),
        materials=tuple(keys.index(key_of(spec)) for spec in specs),
        arrivals=conditions.arrivals,
        begins_in_s=_BEGINS_IN_S,
        seconds=conditions.seconds,
        stagger_s=scenario.stagger_s,
        seed=conditions.seed,
        credentials=conditions.credentials,
    )


@contextmanager
def _open(
    conditions: Conditions, scenario: Scenario, settings: Mapping[str, str]
) -> Iterator[RunningService]:
    if conditions.url is not None:
        yield attach(conditions.url)
        return
    with start_service(conditions.bundle, conditions.backend, scenario.most_streams, settings) as service:
        yield service


def _describe_material(
    key: tuple[str, int, int, float], payloads: Sequence[bytes], video: Path | None
) -> str:
    codec, width, height, fps = key
    source = "the synthetic scene" if video is None else video.name
    megabits_per_s = 8e-6 * fps * sum(map(len, payloads)) / len(payloads)
    return f"{len(payloads)} frames of {source}, {width} x {height}, {codec}, {megabits_per_s:.1f} Mbit/s"


def _unique(values: list[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]
