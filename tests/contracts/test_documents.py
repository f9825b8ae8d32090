"""The documents name only what exists: links, make targets, commands with their options, settings."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from pathlib import Path

import pytest

from service.credentials import CLIENT_VARIABLES
from service.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = (REPOSITORY / "docs", REPOSITORY / "deploy")
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(path for each in FOLDERS for path in each.rglob("*.md"))])
COMMANDS = {
    "surgseg": "service.__main__",
    "surgseg-train": "training.__main__",
    "surgseg-export": "model_export.__main__",
}
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|[\s`/])(surgseg(?:-train|-export)?) ([a-z]+)\b([^`\n]*)")


def code_of(document: Path) -> str:
    """The code in a document, continued lines joined."""
    return "\n".join(CODE.findall(document.read_text(encoding="utf-8"))).replace("\\\n", " ")


def name_of(document: Path) -> str:
    return document.relative_to(REPOSITORY).as_posix()


@pytest.fixture(scope="module")
def targets() -> set[str]:
    return set(
        re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )


def help_of(command: str, subcommand: str) -> str:
    """What `command subcommand --help` prints, or nothing where there is no such subcommand."""
    printed = io.StringIO()
    main = importlib.import_module(COMMANDS[command]).main
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
        pytest.raises(SystemExit) as ended,
    ):
        main([subcommand, "--help"])
    return printed.getvalue() if ended.value.code == 0 else ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    links = LINK.findall(CODE.sub("", document.read_text(encoding="utf-8")))
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_make_targets_exist(document: Path, targets: set[str]) -> None:
    named = set(re.findall(r"(?:^|[\s`;&])make ([a-z][a-z-]*)", code_of(document)))
    assert named - targets == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_and_their_options_exist(document: Path) -> None:
    wrong = []
    for command, subcommand, rest in COMMAND.findall(code_of(document)):
        explained = help_of(command, subcommand)
        options = re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", rest.partition(" #")[0].partition(" | ")[0])
        wrong += [f"{command} {subcommand}"] if not explained else []
        wrong += [f"{command} {subcommand} {option}" for option in options if option not in explained]
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_settings_exist(document: Path) -> None:
    named = set(re.findall(r"SURGSEG_[A-Z_]*[A-Z]", document.read_text(encoding="utf-8")))
    assert (
        named - {f"SURGSEG_{name.upper()}" for name in Settings.model_fields} - {*CLIENT_VARIABLES} == set()
    )


def test_help_lists_every_target_with_a_word_on_it(targets: set[str]) -> None:
    lines = re.findall(
        r"^([a-z-]+):.*## \S", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert targets == set(lines)


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert help_of("surgseg-export", "forge") == ""
    assert "--out" in help_of("surgseg-export", "bundle")
