"""Many runs compared: methods x shares of the labels x folds x seeds, each run in a process of its own.

A sweep's folder holds `sweep.json` (what is compared), `results.jsonl` (one line a run) and `runs/` (each an ordinary
run). It can be stopped at any moment, by any means: the same command makes only what is missing, and continues runs
that were under way from their `last.pt`.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from service.errors import DataError, SurgsegError
from training.config import Recipe, parse_table
from training.data.batches import open_pools
from training.networks import NETWORKS
from training.sweep_config import PlannedRun, SweepConfig, check_comparable, load_sweep
from training.sweep_run import DONE, FAILED, describe_failure, identify, make_run, write_whole
from training.trainer import BEST, LAST, read_commit

PLAN, RESULTS, RUNS, LOCK = "sweep.json", "results.jsonl", "runs", "sweep.lock"
# What a run would otherwise spend its first seconds importing: itself, the optimisers' part of torch, the metrics.
PRELOADED = ("training.sweep_run", "torch._dynamo", "monai.metrics")


def run_sweep(path: Path, folder: Path, jobs: int = 1, progress: bool = True) -> None:
    """Make every run of the sweep file that `folder` does not hold yet, `jobs` at once.

    Runs that failed before are tried again. Raises DataError for a sweep that is not possible or that does not go with
    what the folder holds, and at the end when runs failed.
    """
    if jobs < 1:
        raise DataError(f"--jobs {jobs}.", "1 or more", "Leave it out for one run at a time.")
    sweep, runs = load_sweep(path)
    _check_data(runs)
    commit = read_commit()  # once: the runs' code is what is read now, wherever the checkout moves meanwhile
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        lines = _continue_from(folder, runs)
        write_whole(folder / PLAN, json.dumps(describe_plan(sweep, runs), indent=1) + "\n")
        _write_results(folder, lines)
        waiting = [run for run in runs if run.slug not in {line["run"] for line in lines}]
        bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run", disable=not progress)
        with bar, closing(_make_all(waiting, folder / RUNS, jobs)) as made:
            for line in made:
                lines.append({**line, "commit": commit})
                _write_results(folder, lines)
                bar.update()
                bar.write(_describe(line))
                if not sweep.keep_checkpoints:
                    _delete_checkpoints(folder, line)
    failed = [line for line in lines if line["status"] == FAILED]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(runs)} runs failed, first {failed[0]['run']}: {failed[0]['error']}",
            "every run to finish",
            f"See {folder / RESULTS}; the same command tries them again.",
        )


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The lines of `results.jsonl`, none where there is no such file. Raises DataError."""
    path = folder / RESULTS
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise DataError(
            f"{path} has a line that is not JSON ({error}).", "what a sweep wrote", "Remove that line."
        ) from error


def describe_plan(sweep: SweepConfig, runs: list[PlannedRun]) -> dict[str, Any]:
    """What is compared, for the report and for a later continuation."""
    return {
        "description": sweep.description,
        "recipe": runs[0].recipe.model_dump(mode="json"),
        "methods": {
            entry.label or entry.name: {"name": entry.name, **entry.options} for entry in sweep.methods
        },
        "runs": [identify(run) for run in runs],
    }


def _continue_from(folder: Path, runs: list[PlannedRun]) -> list[dict[str, Any]]:
    """The lines of finished runs. Raises DataError when they were made in another way than these would be."""
    lines = [line for line in read_results(folder) if line["status"] == DONE]
    if lines:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        before = parse_table(Recipe, plan["recipe"], str(folder / PLAN))
        named = before.model_copy(update={"name": f"{before.name} in {folder}"})
        check_comparable([named, runs[0].recipe])
    hashes = {run.slug: run.recipe_hash for run in runs}
    other = next(
        (line for line in lines if hashes.get(line["run"], line["recipe_hash"]) != line["recipe_hash"]), None
    )
    if other:
        raise DataError(
            f"{folder} holds {other['run']}, made with other options.",
            "the options it was made with",
            "Give the changed method another label, or name another --out.",
        )
    return lines


def _check_data(runs: list[PlannedRun]) -> None:
    """Every fold's data can be opened. Raises DataError now, and not once a run."""
    for run in {run.fold: run for run in runs}.values():
        for tables in (run.recipe.labeled, run.recipe.validation, run.test_data):
            open_pools(tables)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which ends with this process however it ends. Raises DataError when another has it."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"Another sweep is running in {folder}.",
                "one at a time",
                "Wait for it, or name another --out.",
            ) from error
        yield


def _write_results(folder: Path, lines: list[dict[str, Any]]) -> None:
    write_whole(folder / RESULTS, "".join(json.dumps(line) + "\n" for line in lines))


def _delete_checkpoints(folder: Path, line: dict[str, Any]) -> None:
    """Only once the run's line is written: without it, the run would have to be made again."""
    if line["status"] == DONE:
        for name in (LAST, BEST):
            (folder / RUNS / line["run"] / name).unlink(missing_ok=True)


def _describe(line: dict[str, Any]) -> str:
    if line["status"] == FAILED:
        return f"{line['run']}: failed: {line['error']}"
    return f"{line['run']}: test Dice {line['dice']:.3f}, {line['seconds']:.0f} s"


@dataclass
class _Job:
    """A run under way in its process."""

    run: PlannedRun
    place: int
    process: BaseProcess
    receiver: Connection

    def take_line(self) -> dict[str, Any]:
        """The line that the process sent, or that of its death."""
        try:
            line: dict[str, Any] = self.receiver.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            reason = f"signal {-code}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
            line = describe_failure(
                self.run, f"The process was ended by {reason if code < 0 else f'code {code}'}."
            )
        self.process.join()
        return line

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def _make_all(runs: list[PlannedRun], folder: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """Start the runs in order, `jobs` at once, and give each one's line when it ends."""
    # Processes are forked from a server that has imported everything and used nothing: quick, and safe with CUDA.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *(entry.partition(":")[0] for entry in NETWORKS.values())])
    waiting, places, active = deque(runs), list(range(jobs)), dict[Connection, _Job]()
    try:
        while waiting or active:
            while waiting and places:
                run, place = waiting.popleft(), places.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                arguments = (run, folder / run.slug, _cores_of(place, jobs), sender)
                process = context.Process(target=_work, args=arguments, name=run.slug)
                process.start()
                sender.close()  # the process has it now: when it dies, the receiver sees the end
                active[receiver] = _Job(run, place, process, receiver)
            for receiver in wait(list(active)):
                job = active.pop(receiver)  # type: ignore[call-overload]
                places.append(job.place)
                yield job.take_line()
    finally:
        for job in active.values():
            job.stop()


def _cores_of(place: int, jobs: int) -> set[int]:
    """The processor cores of one of `jobs` places, so that runs side by side do not fight for them."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[place::jobs] or [cores[place % len(cores)]])


def _work(run: PlannedRun, folder: Path, cores: set[int], sender: Connection) -> None:
    """A run's process: sends one line and ends."""
    # Ctrl-C reaches every process of a terminal; the sweep is the one to answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.sched_setaffinity(0, cores)
    try:
        sender.send(make_run(run, folder))
    except SurgsegError as error:
        sender.send(describe_failure(run, str(error)))
    except Exception as error:
        sender.send(describe_failure(run, f"{type(error).__name__}: {error}"))
        raise


def _end_with_parent() -> None:
    """A sweep that is killed must not leave a run behind that a continued sweep would meet in the same folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
