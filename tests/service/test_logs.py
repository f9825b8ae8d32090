"""Log lines as JSON: one object a line, with the ids of what the line is about."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from service.logs import begin_request, current_request, set_up_logging

log = logging.getLogger("service.anything")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_an_object_and_names_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    log.debug("too small")
    log.info("frame %d\nhas two lines", 7, extra={"stream": "a1", "frame": 7})
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed")
    plain, failed = map(json.loads, capsys.readouterr().err.splitlines())
    assert plain.pop("at").endswith("+00:00")
    assert plain == {
        "level": "info",
        "logger": "service.anything",
        "message": "frame 7\nhas two lines",
        "stream": "a1",
        "frame": 7,
    }
    assert "ValueError: broken" in failed["traceback"]
    assert "stream" not in failed


def test_lines_of_a_request_and_of_the_tasks_it_starts_have_its_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging("info", "json")

    async def work() -> None:
        log.info("part")

    async def serve() -> str:
        begin_request()
        await asyncio.create_task(work())
        return current_request()

    async def serve_two() -> list[str]:
        return await asyncio.gather(serve(), serve())

    ids = asyncio.run(serve_two())
    assert len(set(ids)) == 2
    assert {json.loads(line)["request"] for line in capsys.readouterr().err.splitlines()} == set(ids)
    assert current_request() == ""


def test_a_line_for_people_stays_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    log.warning("all is well")
    assert capsys.readouterr().err.endswith(" WARNING service.anything: all is well\n")


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_strangers_send_is_bounded_and_stays_on_its_line(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging("info", form)
    log.info("%s", "\x1b[31mred\n2026-01-01 forged \u202e\x9b\ud800" + "x" * 100_000)
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert written.strip().isprintable()
    assert len(written) < 2500
    assert "(100" in written


def test_what_strangers_make_uvicorn_say_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    for _ in range(100):
        try:
            b"\xff".decode()
        except UnicodeDecodeError:
            logging.getLogger("uvicorn.error").exception("Invalid UTF-8 sequence received from client.")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert 20 <= len(lines) <= 22
    assert all(line["level"] == "warning" and "traceback" not in line for line in lines)
