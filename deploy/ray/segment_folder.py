"""Segment every recording below a folder with Ray Data, on one node or many.

    python deploy/ray/segment_folder.py RECORDINGS --out DIR [--address auto] [--cores-each 1]

Each recording gives what `surgseg segment RECORDING` gives: DIR/RECORDING/masks/NAME/000000.png ..., frames.csv and,
unless left out, the overlay. Its folder appears whole or not at all, so the same command goes on where it was stopped:
recordings whose folder is there are skipped. Both folders must be seen by every node under the same path.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.bundles import DEFAULT_BUNDLE
from service.errors import DataError, SurgsegError
from service.offline import Request, Segmenter, segment_source

SUFFIXES = {".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm"}
_PARTIAL = ".partial"


class RecordingSegmenter:
    """One actor of Ray: it opens the bundle once and segments one recording after another."""

    def __init__(self, out: str, bundle: str, backend: str, has_overlay: bool) -> None:
        self._out = Path(out)
        self._has_overlay = has_overlay
        self._segmenter = Segmenter(Path(bundle), backend)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Segment `row["source"]` into the folder `row["name"]`; gives the frames, and why it failed or "".

        A failure is an answer, not an exception: one broken recording must not end the others. A worker that is
        killed gives none, and Ray has another one do its recordings again.
        """
        source, target = Path(row["source"]), self._out / row["name"]
        if target.exists():
            return {**row, "frames": 0, "failure": ""}  # another worker finished it before it was lost
        partial = target.with_name(f".{target.name}.{os.getpid()}{_PARTIAL}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            outcome = segment_source(self._segmenter, Request(source, partial, "png", self._has_overlay))
            if outcome.failures:
                return {**row, "frames": outcome.frames, "failure": "; ".join(outcome.failures)}
            partial.replace(target)
        except SurgsegError as error:
            return {**row, "frames": 0, "failure": error.found}
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return {**row, "frames": outcome.frames, "failure": ""}


def plan_recordings(folder: Path, out: Path) -> tuple[list[dict[str, str]], int]:
    """What is to be done, `source` and `name` of each recording, and how many are done already.

    Raises DataError when there is no recording.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and out.resolve() not in path.resolve().parents
    )
    if not files:
        raise DataError(
            f"{folder} holds no recordings.",
            "files that end in " + ", ".join(sorted(SUFFIXES)),
            "Name another folder.",
        )
    jobs = [{"source": str(path.resolve()), "name": str(path.relative_to(folder))} for path in files]
    left = [job for job in jobs if not (out / job["name"]).exists()]
    return left, len(jobs) - len(left)


def remove_leftovers(out: Path) -> None:
    """Delete what killed workers have left; nobody else may be at work in `out`."""
    for partial in list(out.rglob(f".*{_PARTIAL}")):
        shutil.rmtree(partial, ignore_errors=True)


def segment_recordings(jobs: list[dict[str, str]], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Have Ray segment them, and give each one's row as it is done."""
    import ray

    cores = int(ray.cluster_resources().get("CPU", 1))
    workers = max(1, min(len(jobs), cores // arguments.cores_each))
    rows = (
        ray.data.from_items(jobs, override_num_blocks=len(jobs))
        .map(
            RecordingSegmenter,
            fn_constructor_args=(
                str(arguments.out.resolve()),
                str(arguments.bundle.resolve()),
                arguments.backend,
                not arguments.no_overlay,
            ),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=arguments.cores_each,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .iter_rows()
    )
    yield from rows


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Segment every recording below a folder with Ray Data.")
    parser.add_argument("folder", type=Path, help="where the recordings are")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets a folder for each recording"
    )
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, metavar="DIR", help="the model")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="inference runtime (auto)")
    parser.add_argument("--no-overlay", action="store_true", help="write no overlays")
    parser.add_argument("--address", help="a running cluster, or auto; by default one on this machine alone")
    parser.add_argument("--cores-each", type=int, default=1, help="cores of one worker (1)")
    return parser.parse_args()


def main() -> int:
    """0 when every recording is done, 1 when some failed, 2 when nothing could begin, 130 after Ctrl-C."""
    arguments = read_arguments()
    try:
        jobs, done = plan_recordings(arguments.folder, arguments.out)
    except SurgsegError as error:
        print(f"segment_folder: {error}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(arguments.out)
    print(f"{len(jobs)} recordings to segment, {done} are done already", flush=True)
    failures = 0
    try:
        if jobs:
            os.environ.setdefault(
                "RAY_USAGE_STATS_ENABLED", "0"
            )  # Ray would tell its maker about this cluster
            import ray

            ray.init(address=arguments.address, include_dashboard=False, log_to_driver=False)
            for row in segment_recordings(jobs, arguments):
                failures += bool(row["failure"])
                told = f"failed: {row['failure']}" if row["failure"] else f"{row['frames']} frames"
                print(f"{row['name']}: {told}", flush=True)
            remove_leftovers(arguments.out)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with the recordings that are left.", file=sys.stderr)
        return 130
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
