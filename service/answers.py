"""What a service answered over HTTP, as its client reads it."""

from __future__ import annotations

import json
from typing import Any

import httpx

from service.errors import StreamError, SurgsegError
from service.wire import rebuild_error


def read_problem(answer: httpx.Response) -> SurgsegError:
    """The error that a problem document names."""
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        return describe_foreign(answer, "an answer or a problem document")
    return rebuild_error(problem)


def read_json(answer: httpx.Response) -> Any:
    """The JSON of an answer. Raises StreamError where it is none."""
    try:
        return answer.json()
    except json.JSONDecodeError as error:
        raise describe_foreign(answer, "JSON") from error


def describe_foreign(answer: httpx.Response, expected: str) -> StreamError:
    """The error of an answer that no service of ours gives."""
    kind = answer.headers.get("content-type", "nothing")
    return StreamError(
        f"{answer.url} answered {answer.status_code} with {kind}.",
        expected,
        "Check that the address is that of a surgseg service of the same version.",
    )
