"""`surgseg bench`: the model alone and streams of one's own choice, or a scenario by its name."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from service.bench.arrivals import ARRIVALS, Arrivals
from service.bench.machine import describe_machine
from service.bench.material import load_images
from service.bench.memory_runs import measure_memory
from service.bench.model_runs import measure_model, prepare_canvases
from service.bench.plot import plot_runs
from service.bench.post_runs import measure_posts
from service.bench.printing import format_memory, format_model, format_posts, format_streams, format_swaps
from service.bench.scenarios import SCENARIOS, Phase, Scenario, StreamSpec, adapt_scenario
from service.bench.stream_runs import Conditions, measure_streams
from service.bench.swap_runs import measure_swaps
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import open_bundle
from service.credentials import add_credential_arguments, read_credentials
from service.errors import InvalidRequestError
from service.output_files import write_whole
from service.wire import CODECS

_OWN_SECONDS = 20.0
_OWN_SPEC = StreamSpec("jpeg", 1280, 720, 25)
_LIMITS = {"seconds": 36_000, "streams": 256, "fps": 1000, "rounds": 100}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `surgseg bench`."""
    names = "; ".join(f"{name}: {scenario.summary}" for name, scenario in SCENARIOS.items())
    parser.add_argument("--scenario", choices=SCENARIOS, metavar="NAME", help=names)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, metavar="DIR", help="the model")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="inference runtime (auto)")
    parser.add_argument("--url", help="a running service; by default one is started for the measurement")
    parser.add_argument("--seconds", type=float, help="length of each measurement (20, or the scenario's)")
    parser.add_argument("--streams", type=int, help="streams at once (1, or the scenario's)")
    parser.add_argument("--fps", type=float, help="frames a second of each stream (25, or the scenario's)")
    parser.add_argument("--video", type=Path, metavar="FILE", help="by default the synthetic scene")
    parser.add_argument("--codec", choices=CODECS, help="how frames are sent (jpeg, or the scenario's)")
    parser.add_argument("--size", help="size of the frames (1280x720, the file's own, or the scenario's)")
    parser.add_argument("--rounds", type=int, help="measurements of each phase (1, or the scenario's)")
    parser.add_argument(
        "--arrivals", choices=ARRIVALS, default="constant", help="when frames come (constant)"
    )
    parser.add_argument(
        "--warm-up", type=float, default=0.0, metavar="S", help="leave the first seconds out of latencies (0)"
    )
    add_credential_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here as well")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the streams over time")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print tables, write JSON and a plot where asked; 1 when a frame is not accounted for.

    Raises SurgsegError.
    """
    _check(arguments)
    report: dict[str, Any] = {
        "command": ["surgseg", *sys.argv[1:]],
        "machine": describe_machine(),
        "scenario": arguments.scenario,
    }
    print(f"{report['machine']['processor']}, {report['machine']['cores']} cores")
    scenario = SCENARIOS.get(arguments.scenario or "")
    if scenario is None:
        _measure_own(arguments, report)
    else:
        _MEASURES[scenario.kind](arguments, scenario, report)
    if arguments.json is not None:
        write_whole(arguments.json, (json.dumps(_finite(report), indent=2, allow_nan=False) + "\n").encode())
    if arguments.plot is not None:
        title = f"surgseg bench, {arguments.scenario or 'streams of one kind'}"
        write_whole(arguments.plot, plot_runs(title, report["service"]["phases"]).encode())
    runs = [run for phase in report.get("service", {}).get("phases", []) for run in phase["runs"]]
    runs += report.get("swap", {}).get("runs", [])
    return int(any(run["gaps"] for run in runs))


def read_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT as (width, height)."""
    found = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if not found:
        raise InvalidRequestError(
            f"--size is {text!r}.", "WIDTHxHEIGHT, such as 1280x720", "Change the option."
        )
    return int(found[1]), int(found[2])


def _measure_own(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """The model alone, unless the service runs elsewhere, and then equal streams as the options say."""
    spec = _read_spec(arguments)
    streams = 1 if arguments.streams is None else arguments.streams
    scenario = Scenario("streams of one kind", (Phase("streams", (spec,) * streams),), seconds=_OWN_SECONDS)
    if arguments.url is None:
        bundle = open_bundle(arguments.bundle)
        size = (spec.width, spec.height)
        canvases = prepare_canvases(load_images(arguments.video, size, spec.fps), bundle)
        seconds = arguments.seconds or _OWN_SECONDS
        report["model"] = measure_model(bundle, arguments.backend, canvases, seconds)
        print(format_model(report["model"]))
    _measure_service(arguments, scenario, report)


def _measure_streams(arguments: argparse.Namespace, scenario: Scenario, report: dict[str, Any]) -> None:
    adapted = adapt_scenario(
        scenario,
        streams=arguments.streams,
        codec=arguments.codec,
        fps=arguments.fps,
        size=None if arguments.size is None else read_size(arguments.size),
    )
    _measure_service(arguments, adapted, report)


def _measure_service(arguments: argparse.Namespace, scenario: Scenario, report: dict[str, Any]) -> None:
    conditions = Conditions(
        url=arguments.url,
        bundle=arguments.bundle,
        backend=arguments.backend,
        video=arguments.video,
        arrivals=cast(Arrivals, arguments.arrivals),
        seconds=arguments.seconds or scenario.seconds,
        warm_up_s=arguments.warm_up,
        credentials=read_credentials(arguments),
    )
    scenario = replace(scenario, rounds=arguments.rounds or scenario.rounds)
    report["service"] = measure_streams(scenario, conditions)
    print(format_streams(report["service"]))


def _measure_memory(arguments: argparse.Namespace, scenario: Scenario, report: dict[str, Any]) -> None:
    _refuse_options(arguments, "url", "streams", "plot")
    report["memory"] = _measure_alone(measure_memory, arguments, scenario)
    print(format_memory(report["memory"]))


def _measure_posts(arguments: argparse.Namespace, scenario: Scenario, report: dict[str, Any]) -> None:
    _refuse_options(arguments, "url", "streams", "codec", "plot")
    report["post"] = _measure_alone(measure_posts, arguments, scenario)
    print(format_posts(report["post"]))


def _measure_alone(
    measure: Callable[[Path, str, Path | None, StreamSpec, float, int], dict[str, Any]],
    arguments: argparse.Namespace,
    scenario: Scenario,
) -> dict[str, Any]:
    """A measurement that starts what it needs and has one kind of picture."""
    return measure(
        arguments.bundle,
        arguments.backend,
        arguments.video,
        _read_spec(arguments),
        arguments.seconds or scenario.seconds,
        arguments.rounds or scenario.rounds,
    )


def _measure_swaps(arguments: argparse.Namespace, scenario: Scenario, report: dict[str, Any]) -> None:
    _refuse_options(arguments, "url", "streams", "plot")
    report["swap"] = _measure_alone(measure_swaps, arguments, scenario)
    print(format_swaps(report["swap"]))


_MEASURES: Mapping[str, Callable[[argparse.Namespace, Scenario, dict[str, Any]], None]] = {
    "streams": _measure_streams,
    "memory": _measure_memory,
    "post": _measure_posts,
    "swap": _measure_swaps,
}


def _read_spec(arguments: argparse.Namespace) -> StreamSpec:
    """One stream as the options say; a file's own size where none is given."""
    fps = _OWN_SPEC.fps if arguments.fps is None else arguments.fps
    if arguments.size is not None:
        width, height = read_size(arguments.size)
    elif arguments.video is not None and arguments.scenario is None:
        height, width = next(load_images(arguments.video, None, fps)).shape[:2]
    else:
        width, height = _OWN_SPEC.width, _OWN_SPEC.height
    return StreamSpec(arguments.codec or _OWN_SPEC.codec, width, height, fps)


def _finite(value: Any) -> Any:
    """The same with None for figures that JSON has no number for: percentiles of nothing."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check(arguments: argparse.Namespace) -> None:
    for name, most in _LIMITS.items():
        value = getattr(arguments, name)
        if value is not None and not 0 < value <= most:
            raise InvalidRequestError(
                f"--{name} is {value}.", f"above 0, at most {most}", "Change the option."
            )
    if not 0 <= arguments.warm_up <= _LIMITS["seconds"]:
        raise InvalidRequestError(f"--warm-up is {arguments.warm_up}.", "0 or more", "Change the option.")
    if arguments.plot is not None and arguments.plot.suffix != ".svg":
        raise InvalidRequestError(
            f"--plot is {arguments.plot}.", "a name that ends in .svg", "Draw an SVG; browsers show it."
        )


def _refuse_options(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise InvalidRequestError(
                f"--{name} is given for the scenario {arguments.scenario}.",
                "only options that mean something to it",
                "Leave it out.",
            )
