"""WebSockets that are opened and spoken to as docs/asyncapi.yaml says, and as it forbids: all from a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from tests.soak.fuzzed_requests import OPEN_STREAM
from tests.soak.fuzzing_site import HOLDERS, MOST_BYTES, mutate

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "asyncapi.yaml"
_CHANNELS = ("stream", "stream", "stream", "stream", "masks", "scene", "unknown")
_UNKNOWN = (
    "/v1/streams",
    "/v1/stream/",
    "/v1/scene/",
    "/ws",
    "/",
    "/healthz",
    "/v1/streams/x/masks/",
    "/v1/x",
)
_NUMBERS = ["+5", " 5", "5 ", "1_0", "٥", "５", "0x5", "5e0", "nan", "inf", "-inf", "1e999", "", "--5", "5,0"]
_STREAMS = ("stream-0", "%00", "a" * 4000, "stream-1%20", "%0a")
_NAMES = ("colour", "Codec", "", "a" * 3000, "\0", "token")


@dataclass(frozen=True)
class FuzzedSocket:
    """One WebSocket. `kind` is valid or invalid, as the document says of its address, or unknown.

    `messages` are (kind, what is sent): text, bytes, or bytes of the connection itself in a one-tuple.
    """

    channel: str
    kind: str
    holder: str
    target: str
    messages: tuple[tuple[str, Any], ...]


class SocketMaker:
    """Makes sockets in an order that the seed alone decides."""

    def __init__(self, pictures: dict[str, list[bytes]]) -> None:
        self.document: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))
        self._pictures = pictures

    def make(self, count: int, number: int) -> list[FuzzedSocket]:
        """Sockets with `count` messages in all, openings included; `number` is the seed of this batch."""
        source = random.Random(number)
        made: list[FuzzedSocket] = []
        left = count
        while left > 0:
            made.append(self._make_socket(source.choice(_CHANNELS), source, left))
            left -= 1 + len(made[-1].messages)
        return made

    def _make_socket(self, channel: str, source: random.Random, left: int) -> FuzzedSocket:
        holder = source.choice(("all", "all", "all", *HOLDERS))
        kind, target, query = "unknown", source.choice(_UNKNOWN), dict[str, str]()
        if channel != "unknown":
            kind, target, query = _make_opening(self.document["channels"][channel], source)
        pictures = self._pictures.get(query.get("codec", "jpeg"), self._pictures["jpeg"])
        messages = []
        for _ in range(min(source.randint(0, 6), left - 1)):
            what = source.choice(tuple(KINDS))
            messages.append((what, KINDS[what](pictures, source)))
        text = "&".join(f"{quote(name)}={quote(value)}" for name, value in query.items())
        return FuzzedSocket(channel, kind, holder, target + (f"?{text}" if text else ""), tuple(messages))


def _make_opening(channel: dict[str, Any], source: random.Random) -> tuple[str, str, dict[str, str]]:
    """What kind it is, its path and its query."""
    schema = channel["bindings"]["ws"]["query"]
    query = _choose_query(schema, source)
    kind, stream = source.choice(("valid", "valid", "valid", "invalid")), OPEN_STREAM
    if "seed" in schema["properties"]:  # a large scene costs a core
        query |= {"width": "64", "height": "64"}
    if kind == "invalid" and "{stream}" in channel["address"] and source.random() < 0.5:
        stream = source.choice(_STREAMS)
    elif kind == "invalid":
        query = _spoil(query, schema, source)
    return kind, channel["address"].replace("{stream}", stream), query


def _choose_query(schema: dict[str, Any], source: random.Random) -> dict[str, str]:
    """Some of the parameters, each with a value that its schema allows."""
    query = {}
    for name, field in schema["properties"].items():
        if source.random() < 0.4:
            query[name] = _choose_value(field, source)
    return query


def _choose_value(field: dict[str, Any], source: random.Random) -> str:
    if "enum" in field:
        return str(source.choice(field["enum"]))
    least, most = field["minimum"], field["maximum"]
    if field["type"] == "integer":
        return str(source.choice((least, most, source.randint(least, most))))
    return source.choice((str(least), str(most), f"{source.uniform(least, most):.2f}"))


def _spoil(query: dict[str, str], schema: dict[str, Any], source: random.Random) -> dict[str, str]:
    """A query that the document does not allow: a name that it has not, a value of another kind or out of range."""
    if source.random() < 0.2:
        return query | {source.choice(_NAMES): "1"}
    name = source.choice(list(schema["properties"]))
    field = schema["properties"][name]
    if "enum" in field:
        first = field["enum"][0]
        return query | {name: source.choice((first.upper(), f" {first}", "", "x" * 3000, "\0", "overlay"))}
    beyond = (str(field["minimum"] - 1), str(field["maximum"] + 1), "9" * 5000)
    return query | {name: source.choice((*beyond, *_NUMBERS))}


def _frame(payload: bytes, source: random.Random) -> bytes:
    return source.choice((0, 1, 2**64 - 1, source.getrandbits(64))).to_bytes(8, "big") + payload


def _send_raw(first: int, payload: bytes, *, is_masked: bool = True, announced: int | None = None) -> bytes:
    """One frame of the WebSocket protocol itself, right or wrong; `announced` is the length that it claims."""
    length = len(payload) if announced is None else announced
    head = bytes((first, (0x80 if is_masked else 0) | 127)) + struct.pack(">Q", length)
    return head + (bytes(4) if is_masked else b"") + payload


def _cut(message: bytes) -> tuple[bytes]:
    """A message in two pieces, with a ping between them."""
    half = len(message) // 2
    first, last = _send_raw(0x02, message[:half]), _send_raw(0x80, message[half:])
    return (first + b"\x89\x84\0\0\0\0ping" + last,)


def _make_event(source: random.Random) -> str:
    kind = source.choice(("ready", "error", "notice", "closing", "hello", "__proto__", "x" * 5000))
    return f'{{"type": "{kind}", "fatal": true, "sequence": {source.choice(("-1", "1e400", "null"))}}}'


_TEXTS = ("", "{}", "null", "[" * 3000, '{"type": 5}', "\0", "😀" * 500, "NaN")
_GIANTS = (bytes(MOST_BYTES + 1), "x" * (MOST_BYTES + 1), bytes(MOST_BYTES))
_BAD_FRAMES = (
    *(_send_raw(0x81, b"\xff\xfe"), _send_raw(0x83, b"?"), _send_raw(0xF2, b"?"), _send_raw(0x80, b"?")),
    *(_send_raw(0x89, bytes(200)), _send_raw(0x82, b"12345678?", is_masked=False), _send_raw(0x88, b"\3")),
    *(_send_raw(0x82, b"", announced=2**62), _send_raw(0x82, b"", announced=2**63)),
    *(_send_raw(0x88, struct.pack(">H", 1006)), _send_raw(0x88, struct.pack(">H", 999) + b"\xff")),
)
KINDS: dict[str, Callable[[list[bytes], random.Random], Any]] = {
    "valid": lambda pictures, source: _frame(source.choice(pictures), source),
    "mutated picture": lambda pictures, source: _frame(mutate(source.choice(pictures), source), source),
    "mutated message": lambda pictures, source: mutate(_frame(source.choice(pictures), source), source),
    "out of order": lambda pictures, source: _frame(pictures[-1] + pictures[0], source),
    "short": lambda pictures, source: source.randbytes(source.randint(0, 9)),
    "event": lambda pictures, source: _make_event(source),
    "text": lambda pictures, source: source.choice(_TEXTS),
    "giant": lambda pictures, source: source.choice(_GIANTS),
    "bad frame": lambda pictures, source: (source.choice(_BAD_FRAMES),),
    "pieces": lambda pictures, source: _cut(_frame(source.choice(pictures), source)),
}
