"""Reads a Dockerfile: its stages, their steps, and what the image is told about how it runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser
from dockerfile_parse.util import WordSplitter

LAYERS = ("RUN", "COPY")
SETTINGS = (
    *("ARG", "ENV", "WORKDIR", "USER", "LABEL", "EXPOSE", "VOLUME", "STOPSIGNAL"),
    *("HEALTHCHECK", "ENTRYPOINT", "CMD"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction; `value` has its continued lines joined."""

    instruction: str
    value: str
    line: int


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next; `base` is an earlier stage or an image of elsewhere."""

    name: str
    base: str
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Settings:
    """What the instructions so far have set; a stage begins with those of its base."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def apply(self, step: Step) -> None:
        """Take over a step of SETTINGS. Raises ValueError at any other."""
        match step.instruction:
            case "ENV":
                self.environment.update(self._read_pairs(step.value))
            case "ARG":
                name, _, value = step.value.partition("=")
                self.arguments[name] = self.resolve(value)
            case "LABEL":
                self.labels.update(self._read_pairs(step.value))
            case "WORKDIR":
                self.folder = str(Path(self.folder) / self.resolve(step.value))
            case "USER":
                self.user = self.resolve(step.value)
            case "EXPOSE":
                self.ports.append(int(self.resolve(step.value)))
            case "VOLUME":
                self.volumes += json.loads(step.value)
            case "HEALTHCHECK":
                self.health = [] if step.value == "NONE" else json.loads(step.value.partition("CMD ")[2])
            case "ENTRYPOINT":
                self.entry, self.command = json.loads(step.value), []
            case "CMD":
                self.command = json.loads(step.value)
            case "STOPSIGNAL":
                pass
            case _:
                raise ValueError(f"line {step.line}: {step.instruction} is not read here")

    def resolve(self, text: str) -> str:
        """The text with its variables filled in and its quotes taken off."""
        resolved: str = WordSplitter(text, args=self.arguments, envs=self.environment).dequote()
        return resolved

    def _read_pairs(self, text: str) -> Iterator[tuple[str, str]]:
        words: Any = WordSplitter(text, args=self.arguments, envs=self.environment).split()
        for word in words:
            name, _, value = word.partition("=")
            yield name, value


@dataclass(frozen=True, slots=True)
class Copy:
    """A COPY: `source_stage` is None for the build context."""

    sources: tuple[str, ...]
    target: str
    source_stage: str | None
    mode: str | None


def read_stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile in their order. Raises ValueError at an instruction that is not read here."""
    with path.open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    stages: list[Stage] = []
    for found in structure:
        step = Step(found["instruction"], found["value"], found["startline"] + 1)
        if step.instruction == "COMMENT":
            continue
        if step.instruction == "FROM":
            base, _, name = step.value.partition(" AS ")
            stages.append(Stage(name or f"stage {len(stages)}", base, ()))
        elif step.instruction in (*LAYERS, *SETTINGS):
            last = stages.pop()
            stages.append(Stage(last.name, last.base, (*last.steps, step)))
        else:
            raise ValueError(f"{path}, line {step.line}: {step.instruction} is not read here")
    return stages


def read_copy(step: Step, settings: Settings) -> Copy:
    """What a COPY copies. Raises ValueError at an option that is not read here."""
    words = shlex.split(step.value)
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    if unknown := options.keys() - {"from", "chmod"}:
        raise ValueError(f"line {step.line}: COPY --{min(unknown)} is not read here")
    *sources, target = (settings.resolve(word) for word in words if not word.startswith("--"))
    return Copy(tuple(sources), target, options.get("from"), options.get("chmod"))


def read_context(ignore_file: Path) -> list[str]:
    """The files and folders that are sent to the builder: a .dockerignore that names them after a lone `*`.

    Raises ValueError where it is written in another way.
    """
    lines = [line.strip() for line in ignore_file.read_text(encoding="utf-8").splitlines()]
    rules = [line for line in lines if line and not line.startswith("#")]
    named = [rule[1:] for rule in rules if rule.startswith("!")]
    if rules != ["*", *(f"!{name}" for name in named), "**/__pycache__"]:
        raise ValueError(f"{ignore_file} is not `*`, then `!name` for each name, then `**/__pycache__`")
    return named
