"""Log lines: for people, or as JSON objects for a machine that collects them."""

from __future__ import annotations

import itertools
import json
import logging
import secrets
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

_REQUEST: ContextVar[str] = ContextVar("request", default="")
_IDS = ("stream", "frame")
_process = secrets.token_hex(4)
_numbers = itertools.count(1)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; `request`, `stream` and `frame` only where the line is about one."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := current_request():
            fields["request"] = request
        fields |= {name: getattr(record, name) for name in _IDS if hasattr(record, name)}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def begin_request() -> None:
    """What this task does from now on, and the tasks that it starts, is a request of its own."""
    _REQUEST.set(f"{_process}-{next(_numbers)}")


def current_request() -> str:
    """The id of the request that is worked on, unique on this machine; empty outside one."""
    return _REQUEST.get()


def set_up_logging(level: str, form: str = "text") -> None:
    """Log to standard error, one line an event; `form` is text, with time, level, logger, message, or json.

    A line about a stream or one of its frames is logged with `extra={"stream": id, "frame": sequence}`.
    """
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if form == "json" else plain)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line for each connection of uvicorn would drown ours; its warnings and errors stay.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(max(logging.getLogger().level, logging.WARNING))
    logging.getLogger("uvicorn.error").addFilter(_is_true)


def _is_true(record: logging.LogRecord) -> bool:
    """Uvicorn's server of WebSockets takes one that was refused by an HTTP answer for one that was forgotten."""
    return record.msg != "ASGI callable returned without completing handshake."
