"""`/docs`: the HTTP interface for readers, made from the OpenAPI description.

It loads nothing from elsewhere, as the usual pages do: operating theatres have networks of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from service.access.scopes import Scope, scopes_for
from service.api.messages import PROBLEM_MEDIA_TYPE

router = APIRouter()

_SCHEMES = ("bearer", "basic")
_OF_THE_FRAMEWORK = ("HTTPValidationError", "ValidationError")  # in whose place ours is sent
_REFUSALS = {
    "4XX": "A problem document (RFC 9457).",
    "503": "A problem document (RFC 9457): busy, starting or ending. `Retry-After` says when to try again.",
}
_TEXT = {"type": "string"}
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "Why a request was refused (RFC 9457).",
    "required": ["type", "slug", "title", "status", "detail", "found", "expected", "remedy"],
    "properties": {
        "type": {"type": "string", "pattern": "^urn:surgseg:problem:"},
        "slug": {"type": "string", "description": "the kind of error; the end of `type`"},
        "title": _TEXT,
        "status": {"type": "integer", "minimum": 400, "maximum": 599, "description": "the HTTP status"},
        "detail": {"type": "string", "description": "the whole message, the next three together"},
        "found": _TEXT,
        "expected": _TEXT,
        "remedy": _TEXT,
        "retry_after_s": {
            "type": "number",
            "minimum": 0,
            "description": "seconds until it is worth another try, where that is known",
        },
        "instance": {"type": "string", "description": "the request, as the service's log names it"},
    },
}

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "h2{border-top:1px solid #d0d7de;padding-top:1rem}code{background:#f3f4f6;padding:.1em .3em}"
    "td,th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}"
)


@router.get("/docs", include_in_schema=False)
async def read_reference(request: Request) -> HTMLResponse:
    """One page, no script."""
    return HTMLResponse(render_reference(request.app.openapi()))


def complete(describe: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The OpenAPI description that `describe` makes, with what holds for every operation.

    That is the scopes of which its token needs one, and the problem documents that it may be answered with.
    """

    def described() -> dict[str, Any]:
        openapi = describe()
        components = openapi.setdefault("components", {})
        components["securitySchemes"] = {name: {"type": "http", "scheme": name} for name in _SCHEMES}
        schemas = components.setdefault("schemas", {})
        schemas["Problem"] = _PROBLEM
        for unused in _OF_THE_FRAMEWORK:
            schemas.pop(unused, None)
        for path, operations in openapi["paths"].items():
            for method, operation in operations.items():
                _complete_operation(operation, scopes_for("http", method.upper(), path))
        return openapi

    return described


def _complete_operation(operation: dict[str, Any], needed: frozenset[Scope] | None) -> None:
    responses = operation["responses"]
    for status in ("404", "422"):
        responses.pop(status, None)
    if needed is None:
        return
    for status, description in _REFUSALS.items():
        answer = responses.setdefault(status, {"description": description})
        answer["content"] = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    # The first, empty one: a service without tokens asks for none.
    operation["security"] = [{}, *({name: [scope]} for scope in sorted(needed) for name in _SCHEMES)]


def render_reference(openapi: dict[str, Any]) -> str:
    """An OpenAPI description as HTML."""
    info = openapi["info"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>",
        f"<style>{_STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info.get('summary', ''))} For machines: <a href=/openapi.json>/openapi.json</a>. Errors are "
        "problem documents (RFC 9457). Streaming is the WebSocket <code>/v1/stream</code>.</p>",
    ]
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            parts += _render_operation(path, method, operation)
    return "\n".join(parts)


def _render_operation(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    parts = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}</p>"
    ]
    if "description" in operation:
        parts.append(f"<p>{escape(operation['description'])}</p>")
    scopes = {scope for way in operation.get("security", ()) for names in way.values() for scope in names}
    if scopes:
        parts.append(
            f"<p>A token, where the service asks for one: {escape(' or '.join(sorted(scopes)))}.</p>"
        )
    if body := operation.get("requestBody"):
        kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in body["content"])
        parts.append(f"<p>Body: {escape(body.get('description', ''))} {kinds}</p>")
    if parameters := operation.get("parameters"):
        rows = "".join(_render_parameter(parameter) for parameter in parameters)
        parts.append(f"<table><tr><th>parameter<th>values<th>default<th>{rows}</table>")
    answers = "".join(
        f"<tr><td>{escape(status)}<td>{escape(answer['description'])}"
        f"<td>{escape(', '.join(answer.get('content', {})))}"
        for status, answer in operation["responses"].items()
    )
    return [*parts, f"<table><tr><th>answer<th><th>{answers}</table>"]


def _render_parameter(parameter: dict[str, Any]) -> str:
    schema = parameter.get("schema", {})
    values = ", ".join(map(str, schema.get("enum", []))) or str(schema.get("type", ""))
    cells = (parameter["name"], values, str(schema.get("default", "")), parameter.get("description", ""))
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells)
