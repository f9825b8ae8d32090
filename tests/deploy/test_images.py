"""The Dockerfiles keep the house's rules, copy what is there, and agree with the project and with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from docker.steps import Settings as ImageSettings
from docker.steps import Stage, read_context, read_copy, read_stages
from service.settings import Settings
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "docker"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = re.compile(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}")


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture(params=DOCKERFILES, ids=name_of)
def stages(request: pytest.FixtureRequest) -> list[Stage]:
    return read_stages(request.param)


def settings_of(stages: list[Stage]) -> ImageSettings:
    """What the last stage says, with what its base says."""
    by_name = {stage.name: stage for stage in stages}
    settings = ImageSettings()
    for stage in (by_name[stages[-1].base], stages[-1]):
        for step in stage.steps:
            if step.instruction not in ("RUN", "COPY"):
                settings.apply(step)
    return settings


def lint(*paths: Path) -> str:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not here; its wheels are for Linux on x86-64")
    command = [str(program), "--no-color", "--config", str(FOLDER / "hadolint.yaml"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_hadolint_finds_nothing() -> None:
    assert lint(*DOCKERFILES) == ""


def test_hadolint_finds_what_it_is_for(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian:latest\nRUN cd /tmp && sudo true\n")
    assert "DL3007" in lint(bad)


def test_the_base_is_pinned_and_named_once(stages: list[Stage]) -> None:
    names = {stage.name for stage in stages}
    outside = [stage.base for stage in stages if stage.base not in names]
    assert len(outside) == 1
    assert PINNED.fullmatch(outside[0])
    assert outside[0] == read_stages(DOCKERFILES[0])[0].base


def test_images_are_not_root_and_say_what_they_are(stages: list[Stage]) -> None:
    settings = settings_of(stages)
    assert settings.user == "10001:10001"
    assert settings.entry
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in settings.labels.items()}
    assert labels["version"] == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    assert stages[0].base.startswith(labels["base.name"].rpartition("/")[2])
    assert labels.keys() >= {"title", "description", "revision"}


def test_what_serves_has_a_health_check_that_is_in_the_image(stages: list[Stage]) -> None:
    settings = settings_of(stages)
    if settings.ports:
        copied = [read_copy(step, settings).target for step in stages[-1].steps if step.instruction == "COPY"]
        assert f"/usr/local/bin/{settings.health[0]}" in copied
        assert settings.ports == [Settings.model_fields["port"].default]
    else:
        assert [step.value for step in stages[-1].steps if step.instruction == "HEALTHCHECK"] == ["NONE"]


def test_copies_are_there_and_reach_the_builder(stages: list[Stage]) -> None:
    sent = read_context(REPOSITORY / ".dockerignore")
    copies = [
        read_copy(step, ImageSettings())
        for stage in stages
        for step in stage.steps
        if step.instruction == "COPY"
    ]
    named = {source.rstrip("/") for copy in copies if copy.source_stage is None for source in copy.sources}
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    assert named <= set(sent)
    assert {copy.source_stage for copy in copies} - {None} <= {stage.name for stage in stages}


def test_nothing_else_reaches_the_builder() -> None:
    used = {
        source.rstrip("/")
        for path in DOCKERFILES
        for stage in read_stages(path)
        for step in stage.steps
        if step.instruction == "COPY" and not step.value.startswith("--from")
        for source in read_copy(step, ImageSettings()).sources
    }
    assert set(read_context(REPOSITORY / ".dockerignore")) == used


def test_variables_are_settings(stages: list[Stage]) -> None:
    named = {name for name in settings_of(stages).environment if name.startswith("SURGSEG_")}
    assert named <= {f"SURGSEG_{name.upper()}" for name in Settings.model_fields}


def test_services_have_no_torch() -> None:
    for name in ("service", "service-gpu"):
        text = (FOLDER / f"{name}.Dockerfile").read_text(encoding="utf-8")
        assert set(re.findall(r"--extra (\w+)", text)) <= {"cpu", "gpu"}
        assert "COPY training" not in text


def test_the_same_uv_builds_all() -> None:
    texts = [path.read_text(encoding="utf-8") for path in DOCKERFILES]
    assert len({tuple(re.findall(r"ARG UV_VERSION=(\S+)", text)) for text in texts}) == 1


def test_what_the_gpu_image_pins_is_what_the_extra_asks_for() -> None:
    lines = (FOLDER / "gpu-constraints.txt").read_text(encoding="utf-8").split()
    pins = dict(line.split("==") for line in lines)
    asked = {each.name: each for each in map(Requirement, PROJECT["optional-dependencies"]["gpu"])}
    pinned_elsewhere = {"cuda-bindings"}
    assert pins.keys() == asked.keys() - pinned_elsewhere
    assert all(asked[name].specifier.contains(version) for name, version in pins.items())


@pytest.mark.parametrize("line", ["ADD https://example.org/x /x", "SHELL ['sh']", "ONBUILD RUN true"])
def test_an_instruction_that_no_trial_runs_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(f"FROM debian:12\n{line}\n")
    with pytest.raises(ValueError, match="is not read here"):
        read_stages(path)


@pytest.mark.parametrize("text", ["service\n", "*\n!service\nservice/web\n", "!service\n*\n**/__pycache__\n"])
def test_a_list_of_what_is_sent_in_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".dockerignore"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not `\\*`"):
        read_context(path)


def test_scripts_can_be_run() -> None:
    for path in [*FOLDER.glob("*.sh"), FOLDER / "probe.py"]:
        assert path.stat().st_mode & 0o111, path
    if shutil.which("dash"):
        for path in FOLDER.glob("*.sh"):
            subprocess.run(["dash", "-n", str(path)], check=True)
