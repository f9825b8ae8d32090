"""Log lines: for people, or as JSON objects for a machine that collects them."""

from __future__ import annotations

import itertools
import json
import logging
import secrets
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime

from service.access.rates import TokenBucket
from service.errors import shorten

_REQUEST: ContextVar[str] = ContextVar("request", default="")
_IDS = ("stream", "frame")
_MOST_CHARACTERS = 2000
# what uvicorn says, once for each of them, of bytes that are no HTTP and of text that is no UTF-8
_OF_STRANGERS = frozenset(
    {
        "Invalid HTTP request received.",
        "Invalid UTF-8 sequence received from client.",
        "Unsupported upgrade request.",
    }
)
_process = secrets.token_hex(4)
_numbers = itertools.count(1)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; `request`, `stream` and `frame` only where the line is about one."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shorten(record.getMessage(), _MOST_CHARACTERS),
        }
        if request := current_request():
            fields["request"] = request
        fields |= {name: getattr(record, name) for name in _IDS if hasattr(record, name)}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _escape(json.dumps(fields, ensure_ascii=False), "\\u{:04x}")


class _PlainFormatter(logging.Formatter):
    """A line an event, which a message cannot break into two, and a traceback after it where there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = _escape(shorten(record.message, _MOST_CHARACTERS), "\\x{:02x}")
        return super().formatMessage(record)


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
    plain = _PlainFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if form == "json" else plain)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line for each connection of uvicorn would drown ours; its warnings and errors stay.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(max(logging.getLogger().level, logging.WARNING))
    logging.getLogger("uvicorn.error").filters[:] = [_Calm()]


class _Calm(logging.Filter):
    """Of what strangers make uvicorn say a line a second, after the first twenty, and no traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = TokenBucket(1.0, 20.0)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.msg in _OF_STRANGERS:
            record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
            return self._lines.take(time.monotonic()) == 0.0
        # It takes a WebSocket that was refused by an HTTP answer for one that was forgotten.
        return record.msg != "ASGI callable returned without completing handshake."


def _escape(text: str, form: str) -> str:
    """The text without what a terminal would act on or a reader of lines would take for an end."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else form.format(ord(each)) for each in text)
