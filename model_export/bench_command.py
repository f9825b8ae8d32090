"""surgseg-export bench: every runtime and precision that opens here, side by side in one run."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model_export.runtime_figures import RuntimeJob, measure_runtime
from service.backends import BACKENDS, load_backend
from service.contract.bundle import Bundle, open_bundle
from service.contract.model_card import Precision
from service.errors import BackendError, InvalidRequestError
from service.output_files import write_whole

Runtime = tuple[str, Precision]
REFERENCE: Runtime = ("onnxruntime-cpu", "float32")
"""What the labels of the others are compared with, and their speed divided by."""
_LIMIT_SECONDS, _LIMIT_ROUNDS, _LIMIT_BATCH = 600.0, 100, 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export bench`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often, all in turns (%(default)s)")
    parser.add_argument(
        "--batch-sizes", default="1,2,4,8,16", metavar="N,N", help="pictures a call (%(default)s)"
    )
    parser.add_argument("--threads", type=int, help="threads of one inference (all cores)")
    parser.add_argument("--data", metavar="READER:PATH", help="labeled frames to compute Dice on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here as well")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw frames per second by batch size")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write what was asked for. Raises SurgsegError."""
    job = _read_job(arguments)
    rows = measure_all(job, list_runtimes(open_bundle(arguments.bundle)), arguments.rounds)
    print(format_table(rows))
    card = open_bundle(arguments.bundle).card
    report = {
        "command": ["surgseg-export", *sys.argv[1:]],
        "bundle": f"{card.name} {card.version}",
        "input": [card.input_size.width, card.input_size.height],
        "reference": list(REFERENCE),
        "runtimes": rows,
    }
    if arguments.json is not None:
        write_whole(arguments.json, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    if arguments.plot is not None:
        from model_export.bench_plot import draw_runtimes  # matplotlib takes a second

        write_whole(arguments.plot, draw_runtimes(report).encode())
    return 0


def list_runtimes(bundle: Bundle) -> list[Runtime]:
    """Every backend and precision that runs the bundle here, the reference first; says what is left out, and why."""
    found: list[Runtime] = []
    for name in BACKENDS:
        if name == "fake":
            continue
        try:
            factory = load_backend(name)
        except BackendError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        for precision in reversed(factory.precisions):
            if reason := factory.reason_against(bundle, precision):
                print(f"left out: {name} in {precision}: {reason}", file=sys.stderr)
            else:
                found.append((name, precision))
    return sorted(found, key=lambda runtime: runtime != REFERENCE)


def measure_all(job: RuntimeJob, runtimes: Sequence[Runtime], rounds: int) -> list[dict[str, Any]]:
    """A row for each runtime: medians over the rounds, and each round's own figures. All take turns in every round."""
    measured: dict[Runtime, list[dict[str, Any]]] = {runtime: [] for runtime in runtimes}
    turns = [(number, runtime) for number in range(rounds) for runtime in runtimes]
    for number, (backend, precision) in tqdm(turns, desc="bench", unit="run", disable=None):
        one = replace(job, backend=backend, precision=precision, is_scored=number == 0)
        measured[backend, precision].append(_measure_apart(one))
    reference = measured[runtimes[0]][0]["masks"]
    rows = [_summarize(runtime, figures, reference) for runtime, figures in measured.items()]
    for row in rows:
        row["times_reference"] = row["best_frames_per_s"] / rows[0]["best_frames_per_s"]
    return rows


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    sizes = list(rows[0]["batches"])
    head = ["runtime", *(f"batch {size}: ms (frames/s)" for size in sizes), "several at once, frames/s"]
    head += ["times the reference", "labels equal", "Dice", "MB", "opened in s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{row['backend']} {row['precision']}"]
        cells += [f"{each['ms']:.1f} ({each['frames_per_s']:.0f})" for each in row["batches"].values()]
        cells += [f"{row['at_once']['frames_per_s']:.0f}", f"{row['times_reference']:.2f}"]
        cells += [f"{row['labels_equal']:.4%}", "" if row["dice"] is None else f"{row['dice']:.4f}"]
        cells += [f"{row['memory_mb']:.0f}", f"{row['opened_in_s']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _measure_apart(job: RuntimeJob) -> dict[str, Any]:
    """In a process of its own, so that no runtime's threads and memory are in another's way."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(measure_runtime, job).result()
        except BrokenProcessPool as error:
            raise BackendError(
                f"The process that measured {job.backend} {job.precision} was killed.",
                "enough memory for it",
                "Measure smaller --batch-sizes.",
            ) from error


def _summarize(
    runtime: Runtime, rounds: Sequence[dict[str, Any]], reference_nhw: np.ndarray
) -> dict[str, Any]:
    sizes = rounds[0]["batches"]

    def median(*path: Any) -> float:
        values: list[Any] = list(rounds)
        for key in path:
            values = [each[key] for each in values]
        return float(np.median(values))

    batches = {size: {name: median("batches", size, name) for name in sizes[size]} for size in sizes}
    at_once = {"calls": rounds[0]["at_once"]["calls"], "frames_per_s": median("at_once", "frames_per_s")}
    rates = [at_once["frames_per_s"], *(each["frames_per_s"] for each in batches.values())]
    return {
        "backend": runtime[0],
        "precision": runtime[1],
        "batches": batches,
        "at_once": at_once,
        "best_frames_per_s": max(rates),
        "labels_equal": float((rounds[0]["masks"] == reference_nhw).mean()),
        "dice": rounds[0]["dice"],
        "memory_mb": median("memory_mb"),
        "opened_in_s": median("opened_in_s"),
        "rounds": [
            {key: value for key, value in figures.items() if key not in ("masks", "dice")}
            for figures in rounds
        ],
    }


def _read_job(arguments: argparse.Namespace) -> RuntimeJob:
    for name, limit in (("seconds", _LIMIT_SECONDS), ("rounds", _LIMIT_ROUNDS)):
        if not 0 < getattr(arguments, name) <= limit:
            raise InvalidRequestError(
                f"--{name} is {getattr(arguments, name)}.",
                f"above 0, at most {limit:g}",
                "Change the option.",
            )
    try:
        sizes = sorted({int(part) for part in arguments.batch_sizes.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not 0 < sizes[0] <= sizes[-1] <= _LIMIT_BATCH:
        raise InvalidRequestError(
            f"--batch-sizes is {arguments.batch_sizes!r}.",
            f"numbers from 1 to {_LIMIT_BATCH}, as 1,2,4",
            "Change the option.",
        )
    if arguments.plot is not None and arguments.plot.suffix != ".svg":
        raise InvalidRequestError(
            f"--plot is {arguments.plot}.", "a name that ends in .svg", "Draw an SVG; browsers show it."
        )
    open_bundle(arguments.bundle)
    return RuntimeJob(
        bundle=arguments.bundle,
        backend="",
        precision="float32",
        batch_sizes=tuple(sizes),
        seconds=arguments.seconds,
        threads=arguments.threads,
        labels=arguments.data,
        is_scored=False,
    )
