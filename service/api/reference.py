"""`/docs`: the HTTP interface for readers, made from the OpenAPI description.

It loads nothing from elsewhere, as the usual pages do: operating theatres have networks of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from service.access.scopes import scopes_for

router = APIRouter()

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "h2{border-top:1px solid #d0d7de;padding-top:1rem}code{background:#f3f4f6;padding:.1em .3em}"
    "td,th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}"
)


@router.get("/docs", include_in_schema=False)
async def read_reference(request: Request) -> HTMLResponse:
    """One page, no script."""
    return HTMLResponse(render_reference(request.app.openapi()))


def describe_access(describe: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The OpenAPI description that `describe` makes, with the scopes of which each operation's token needs one."""

    def described() -> dict[str, Any]:
        openapi = describe()
        schemes = {name: {"type": "http", "scheme": name} for name in ("bearer", "basic")}
        openapi.setdefault("components", {})["securitySchemes"] = schemes
        for path, operations in openapi["paths"].items():
            for method, operation in operations.items():
                needed = scopes_for("http", method.upper(), path)
                if needed is not None:
                    # The first, empty one: a service without tokens asks for none.
                    operation["security"] = [
                        {},
                        *({name: [scope]} for scope in sorted(needed) for name in schemes),
                    ]
        return openapi

    return described


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
