"""Runs the steps of a Dockerfile in a clean Debian root, and what it makes, where there is no container engine.

    python -m docker.trial docker/service.Dockerfile --serve
    python -m docker.trial docker/training.Dockerfile --run --help

As root, with debootstrap. The steps are those of the Dockerfile itself. The base is Debian's smallest root of the same
release, not the image that FROM names: its digest is not checked, and what the image lacks of that root is not seen.
`--serve` starts the image as a hardened container (no root, no capability, nothing to write to but its volumes), waits
for its health check, posts the default bundle's golden picture, compares the mask, pushes H.264, and stops it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from docker.clean_root import Mounts, Task, make_base, measure, run
from docker.container import Container, TrialError
from docker.steps import Settings, Stage, Step, read_context, read_copy, read_stages

_REPOSITORY = Path(__file__).resolve().parents[1]
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MEBIBYTE = 2**20


class Builder:
    """Makes a root of every stage and keeps that of the last. `mounts` and `environment` are for the steps only; a RUN
    that holds the text `omitted` is left out."""

    def __init__(self, work: Path, mounts: Mounts, environment: dict[str, str], omitted: str | None) -> None:
        self._work = work
        self._mounts = mounts
        self._environment = environment
        self._omitted = omitted
        self._context = read_context(_REPOSITORY / ".dockerignore")
        self._roots: dict[str, Path] = {}
        self._settings: dict[str, Settings] = {}

    def build(self, stages: list[Stage]) -> tuple[Path, Settings]:
        """The last stage's root and settings. Raises TrialError at the first step that fails."""
        for stage in stages:
            self._start(stage)
            for step in stage.steps:
                print(
                    f"--- {stage.name}, line {step.line}: {step.instruction} {step.value[:150]}", flush=True
                )
                began_at = time.monotonic()
                if self._omitted and self._omitted in step.value and step.instruction == "RUN":
                    print("    LEFT OUT", flush=True)
                elif step.instruction == "RUN":
                    self._run(stage, step.value)
                elif step.instruction == "COPY":
                    self._copy(stage, step)
                else:
                    self._settings[stage.name].apply(step)
                    continue
                print(f"    {time.monotonic() - began_at:.0f} s", flush=True)
        last = self._roots.pop(stages[-1].name)
        for root in self._roots.values():
            shutil.rmtree(root)
        return last, self._settings[stages[-1].name]

    def _start(self, stage: Stage) -> None:
        before = self._settings.get(stage.base)
        if before is None:
            base = self._work / _suite_of(stage.base)
            make_base(base, _suite_of(stage.base))
            settings = Settings(environment={"PATH": _DEFAULT_PATH})
        else:
            base = self._roots[stage.base]
            settings = Settings(dict(before.environment), {}, dict(before.labels), before.folder, before.user)
        root = self._work / stage.name.replace(" ", "-")
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
        self._roots[stage.name], self._settings[stage.name] = root, settings

    def _run(self, stage: Stage, command: str) -> None:
        settings = self._settings[stage.name]
        environment = {**self._environment, **settings.environment, **settings.arguments}
        task = Task(["/bin/sh", "-c", command], settings.user, settings.folder, environment)
        if code := run(self._roots[stage.name], task, self._mounts):
            raise TrialError(f"A step of the stage {stage.name} ended with {code}: RUN {command}")

    def _copy(self, stage: Stage, step: Step) -> None:
        root, settings = self._roots[stage.name], self._settings[stage.name]
        copy = read_copy(step, settings)
        target = root / str(Path(settings.folder) / copy.target).lstrip("/")
        into_folder = copy.target.endswith("/") or len(copy.sources) > 1
        for name in copy.sources:
            source = self._find(name, copy.source_stage)
            end = target / source.name if into_folder and not source.is_dir() else target
            end.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                end.mkdir(exist_ok=True)
                excluded = ["--exclude=__pycache__"] if copy.source_stage is None else []
                pack = subprocess.Popen(
                    ["tar", "-C", source, *excluded, "-cf", "-", "."], stdout=subprocess.PIPE
                )
                subprocess.run(
                    ["tar", "-C", end, "--no-same-owner", "-xpf", "-"], stdin=pack.stdout, check=True
                )
            else:
                shutil.copy(source, end)
            if copy.mode:
                end.chmod(int(copy.mode, 8))

    def _find(self, name: str, stage: str | None) -> Path:
        if stage is not None:
            return self._roots[stage] / name.lstrip("/")
        parts = Path(name).parts
        if not any(parts[: len(Path(sent).parts)] == Path(sent).parts for sent in self._context):
            raise TrialError(f"{name} is copied, but .dockerignore keeps it from the builder.")
        return _REPOSITORY / name


def _suite_of(image: str) -> str:
    """Debian's release of a base image, as bookworm of debian:bookworm-20260824-slim. Raises TrialError."""
    found = re.match(r"debian:([a-z]+)-\d+-slim@sha256:[0-9a-f]{64}$", image)
    if found is None:
        raise TrialError(f"{image} is no Debian image of a release and a date, pinned by its digest.")
    return found.group(1)


def _read_mount(text: str) -> tuple[str, Path]:
    outside, _, inside = text.partition(":")
    return inside or outside, Path(outside).resolve()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="docker.trial", description="Run a Dockerfile's steps in a clean root."
    )
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/surgseg-try"), help="(%(default)s)")
    parser.add_argument(
        "--lend", action="append", default=[], metavar="PATH[:INSIDE]", help="for the steps, read-only"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the steps")
    parser.add_argument("--omit", metavar="TEXT", help="leave out the RUN that holds this, and say so")
    parser.add_argument("--serve", action="store_true", help="start the image and have it segment a picture")
    parser.add_argument("--port", type=int, default=18000, help="for --serve (%(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="for what is started"
    )
    parser.add_argument(
        "--mount", action="append", default=[], metavar="PATH[:INSIDE]", help="for what is started, read-only"
    )
    parser.add_argument("--tmp", action="append", default=[], metavar="DIR", help="a folder in memory for it")
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="ARGUMENT",
        help="run the entry point with these",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Try an image; gives 0, or 1 with a line that says what failed."""
    chosen = _parse(arguments)
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        print(
            "docker.trial: it needs root and debootstrap; on Debian: apt-get install debootstrap",
            file=sys.stderr,
        )
        return 1
    work = chosen.work / chosen.dockerfile.stem
    work.mkdir(parents=True, exist_ok=True)
    lent = Mounts(lent=dict(map(_read_mount, chosen.lend)))
    try:
        builder = Builder(work, lent, dict(pair.split("=", 1) for pair in chosen.env), chosen.omit)
        root, settings = builder.build(read_stages(chosen.dockerfile))
        base = measure(work / _suite_of(read_stages(chosen.dockerfile)[0].base))
        print(
            f"size: {measure(root) / _MEBIBYTE:.0f} MiB, of which the base is {base / _MEBIBYTE:.0f}",
            flush=True,
        )
        container = Container(
            root,
            settings,
            temporary=chosen.tmp,
            mounted=dict(map(_read_mount, chosen.mount)),
            changed=dict(pair.split("=", 1) for pair in chosen.set),
        )
        if chosen.serve:
            container.serve(chosen.port)
        if chosen.run:
            return container.run(chosen.run)
    except (TrialError, ValueError, OSError, subprocess.SubprocessError) as error:
        print(f"docker.trial: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
