"""Request bodies from strangers: bounded while they are read, raw or multipart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service.errors import InvalidRequestError, PayloadTooLargeError, SurgsegError

_FIELD = "file"
_MAX_ORDER_BYTES = 64 * 1024
Order = TypeVar("Order", bound=BaseModel)


async def read_picture(request: Request, max_body_bytes: int, timeout_s: float) -> bytes:
    """The picture's bytes: the body itself, or the part `file` of a multipart form.

    Raises PayloadTooLargeError as soon as the limit is passed, InvalidRequestError for an empty body, for a
    form without that part, and for a body that takes longer than `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read_body(request, max_body_bytes)
    except TimeoutError as error:
        found = f"The body had not arrived after {timeout_s:g} s."
        raise InvalidRequestError(found, "a whole picture", "Send it again.") from error
    except ClientDisconnect as error:
        raise InvalidRequestError("The client left.", "a whole picture", "Send it again.") from error
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        body = await _take_part(request.headers, body)
    if not body:
        raise InvalidRequestError(
            "The body is empty.", "the bytes of a JPEG or PNG picture", "curl --data-binary @frame.jpg URL"
        )
    return body


async def read_order(request: Request, kind: type[Order], example: dict[str, str], timeout_s: float) -> Order:
    """What a request's JSON orders; "5" is no number in it.

    Raises InvalidRequestError that shows the `example`, or as `read_picture` does.
    """
    body = await _read_json(request, timeout_s)
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequestError(
            f"The {place} is not valid: {first['msg']}.",
            "a JSON object such as " + json.dumps(example),
            "See /docs for every field.",
        ) from error


async def _read_json(request: Request, timeout_s: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_body(request, _MAX_ORDER_BYTES)
    except TimeoutError as error:
        found = f"The body had not arrived after {timeout_s:g} s."
        raise InvalidRequestError(found, "a JSON object", "Send it again.") from error
    except ClientDisconnect as error:
        raise InvalidRequestError("The client left.", "a JSON object", "Send it again.") from error


async def _read_body(request: Request, max_body_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_body_bytes:
        raise _too_large(f"The body has {announced} bytes.", max_body_bytes)
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes > max_body_bytes:
            raise _too_large(f"The body has more than {max_body_bytes} bytes.", max_body_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


async def _take_part(headers: Headers, body: bytes) -> bytes:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, whole(), max_files=1, max_fields=8)
    parser.spool_max_size = len(body) + 1  # the body is in memory already: no detour over a temporary file
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise _bad_form(f"The multipart body cannot be read: {error}.") from error
    try:
        part = form.get(_FIELD)
        if not isinstance(part, UploadFile):
            raise _bad_form(f"The form has the parts {sorted(form)}.")
        return await part.read()
    finally:
        await form.close()


def _bad_form(found: str) -> SurgsegError:
    return InvalidRequestError(found, f"one file part named {_FIELD!r}", f"curl -F {_FIELD}=@frame.jpg URL")


def _too_large(found: str, max_body_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        found, f"at most {max_body_bytes}", "Send a smaller picture, or raise SURGSEG_MAX_BODY_BYTES."
    )
