"""Every error an HTTP client can meet, as a problem document."""

from __future__ import annotations

import logging
import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from service.api.messages import answer_problem
from service.errors import (
    InvalidRequestError,
    OverloadedError,
    SurgsegError,
    TooManyRequestsError,
    UnavailableError,
)

_log = logging.getLogger(__name__)


def install_problem_handlers(app: FastAPI) -> None:
    """Answer our own errors, FastAPI's validation, the router's 404 and 405, and bugs, all in one form."""
    app.add_exception_handler(SurgsegError, _answer_ours)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_bug)


async def _answer_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, SurgsegError)
    headers = {"Retry-After": "1"} if isinstance(error, UnavailableError) else {}
    if isinstance(error, OverloadedError | TooManyRequestsError):
        headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
    return answer_problem(error, headers)


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    expected = first.get("ctx", {}).get("expected", "a valid value").replace("'", "")
    return answer_problem(
        InvalidRequestError(
            f"The parameter {name} is {first.get('input')!r}.", expected, "See /docs for every parameter."
        )
    )


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = SurgsegError(
        f"{request.method} {request.url.path}: {error.detail}.", "an address of this service", "See /docs."
    )
    problem.slug, problem.title, problem.status = "http-error", str(error.detail), error.status_code
    return answer_problem(problem, error.headers)


async def _answer_bug(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer_problem(
        SurgsegError(
            f"The service failed ({error.__class__.__name__}).",
            "an answer",
            "Report this with the service's log.",
        )
    )
