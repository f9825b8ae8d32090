"""The figures of a measurement as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.bench.figures import ENCODED, SENT
from service.push import format_table


def format_model(model: Mapping[str, Any]) -> str:
    """The model alone."""
    head = (
        f"{model['name']} {model['version']} alone ({model['backend']}, {model['precision']}): "
        f"{model['frames_per_s']:.1f} frames/s"
    )
    return f"\n{head}\n{format_table({'infer': model['ms']})}"


def format_streams(report: Mapping[str, Any]) -> str:
    """What `measure_streams` gives: each run of each phase, and how the phases compare."""
    lines = ["", *report["material"]]
    for phase in report["phases"]:
        for number, run in enumerate(phase["runs"], 1):
            which = f", round {number} of {len(phase['runs'])}" if len(phase["runs"]) > 1 else ""
            lines.append(f"\n{phase['name']}{which}: {len(run['streams'])} streams, {run['seconds']:g} s")
            lines += _format_run(run)
    if len(report["phases"]) > 1:
        lines.append(f"\n{ENCODED}, p99 in ms")
        for phase in report["phases"]:
            each = ", ".join(f"{value:.1f}" for value in phase["p99"]["runs_ms"])
            lines.append(
                f"{phase['name']:<20} median {phase['p99']['median_ms']:.1f} ({each}), "
                f"{phase['p99']['of_first_phase']:.2f} of the first"
            )
    for name in report["left_out"]:
        lines.append(
            f"\nLeft out: {name}; it needs a service with settings of its own. Run it without --url."
        )
    return "\n".join(lines)


def format_memory(report: Mapping[str, Any]) -> str:
    """What `measure_memory` gives."""
    lines = [f"\n{report['material']}, {report['inference_threads']} inference threads"]
    for name, rates in report["frames_per_s"].items():
        each = ", ".join(f"{rate:.1f}" for rate in rates)
        share = report["of_bare_loop"].get(name)
        of_bare = "" if share is None else f"  {share:.0%} of the bare loop"
        median = report["median_frames_per_s"][name]
        lines.append(f"{name:<28} median {median:7.1f} frames/s ({each}){of_bare}")
    return "\n".join(lines)


def format_posts(report: Mapping[str, Any]) -> str:
    """What `measure_posts` gives."""
    lines = [f"\n{report['material']}"]
    for clients, figures in report["clients"].items():
        lines.append(f"{clients} clients: {figures['of_best_plain']:.2f} times the better plain endpoint")
        for name, runs in figures["runs"].items():
            each = ", ".join(f"{run['requests_per_s']:.0f}" for run in runs)
            p50, p99 = (sorted(run["ms"][rank] for run in runs)[len(runs) // 2] for rank in ("p50", "p99"))
            median = figures["median_requests_per_s"][name]
            lines.append(
                f"  {name:<38} median {median:6.1f} requests/s ({each}), p50 {p50:.1f} ms, p99 {p99:.1f} ms"
            )
    return "\n".join(lines)


def format_swaps(report: Mapping[str, Any]) -> str:
    """What `measure_swaps` gives."""
    lines = [f"\n{report['streams']} streams of {report['material']}; {ENCODED} in ms"]
    for run in report["runs"]:
        took = ", ".join(f"{seconds:.1f}" for seconds in run["changes_s"])
        lines.append(
            f"{len(run['changes_s'])} changes ({took} s), {run['ended_by_the_service']} streams ended; "
            f"p99 {run['of_quiet']['p99']:.2f} times the quiet one"
        )
        lines += [f"DOES NOT ADD UP: {gap}" for gap in run["gaps"]]
        lines.append(format_table({"quiet": run["quiet_ms"], "changing": run["changing_ms"]}))
    return "\n".join(lines)


def _format_run(run: Mapping[str, Any]) -> list[str]:
    causes = ", ".join(f"{cause} {number}" for cause, number in run["dropped"].items()) or "none"
    lines = [
        f"pushed {run['pushed']}, received {run['received']} = segmented {run['segmented']} + dropped ({causes}); "
        f"answered {run['answered']} ({run['fps_answered']:.1f} fps), skipped {run['skipped']}",
    ]
    lines += [f"DOES NOT ADD UP: {gap}" for gap in run["gaps"]]
    lines += [_format_stream(stream) for stream in run["streams"]]
    if run["fairness"] is not None:
        fairness = run["fairness"]
        lines.append(
            f"fairness: {fairness['least_fps']:.2f} to {fairness['most_fps']:.2f} fps a stream, "
            f"ratio {fairness['ratio']:.3f}"
        )
    usage, client = run["usage"], run["client"]
    if usage["service_cores"] is not None:
        memory = usage["service_mib"]
        lines.append(
            f"service and decoders: {usage['service_cores']:.2f} cores, {memory['first']:.0f} MiB at first, "
            f"{memory['last']:.0f} at last, {memory['most']:.0f} at most"
        )
    late = client["late_ms"]
    lines.append(
        f"client: {client['cores']:.2f} cores, frames pushed late by p50 {late['p50']:.1f}, "
        f"p99 {late['p99']:.1f}, max {late['max']:.1f} ms"
    )
    if run["ended_by_the_service"]:
        lines.append(f"p99 of the streams that stayed: {run['p99_of_those_that_stayed_ms']:.1f} ms")
    lines.append(
        "p99 by thirds of the time: " + ", ".join(f"{value:.1f}" for value in run["p99_by_thirds_ms"])
    )
    return [*lines, format_table(run["ms"]), f"({SENT}: between {ENCODED} and the round trip)"]


def _format_stream(stream: Mapping[str, Any]) -> str:
    if stream["refusal"]:
        return f"  {stream['name']}: refused: {stream['refusal']}"
    line = f"  {stream['name']}: answered {stream['answered']} of {stream['pushed']}"
    if stream["answered"]:
        line += f", p99 {stream['ms'][ENCODED]['p99']:.1f} ms"
    if stream["connections"] > 1:
        line += f", {stream['connections']} connections"
    if stream["ended"]:
        line += f", ended after {stream['ended_at_s']:.1f} s: {stream['ended']}"
    return line
