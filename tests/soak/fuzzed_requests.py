"""HTTP requests that schemathesis makes from the service's own OpenAPI document, and such as no document names.

Every request is bytes, made from the seed and the document alone: the same in every run.
"""

from __future__ import annotations

import copy
import random
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.soak.fuzzing_site import BUNDLES, FILES, HOLDERS, mutate
from tests.soak.strange_requests import make_strange, pick_strange_headers

BASE = "http://fuzzed"
HOST = b"HOST.AND.PORT"
OPEN_STREAM = "stream-open"
_MAY_BE_RARE = {"POST /v1/model/rollback": 0.01, "POST /v1/model": 0.08}
_SHARE_OF_STRANGE = 0.25
_BOUNDARY = re.compile(rb"boundary=([0-9a-f]+)")


@dataclass(frozen=True)
class FuzzedRequest:
    """`operation` is the document's, or "other"; `data` all bytes on the wire, `HOST` where the address belongs.

    `OPEN_STREAM` stands for the id of a stream that is open when it is sent.
    """

    operation: str
    kind: str
    holder: str
    method: str
    target: str
    data: bytes


class RequestMaker:
    """Makes requests in an order that the seed alone decides."""

    def __init__(
        self, document: dict[str, Any], secrets: dict[str, str], pictures: dict[str, list[bytes]]
    ) -> None:
        self._secrets = secrets
        for media_type, codec in (("image/jpeg", "jpeg"), ("image/png", "png")):
            schemathesis.openapi.media_type(media_type, _pictures(pictures[codec]))
        schemathesis.openapi.format("binary", _pictures(pictures["jpeg"]))
        schema = schemathesis.openapi.from_dict(_aim(document))
        self._operations: dict[tuple[str, str], Any] = {}
        for found in schema.get_all_operations():
            operation = found.ok()
            name = f"{operation.method.upper()} {operation.path}"
            for mode in GenerationMode:
                self._operations[name, mode.value] = operation.as_strategy(generation_mode=mode)
        self._operations = {key: each for key, each in self._operations.items() if _can_draw(each)}
        self._shares = [_MAY_BE_RARE.get(name, 1.0) for name, _ in self._operations]

    def make(self, count: int, number: int) -> list[FuzzedRequest]:
        """`count` requests; `number` is the seed of this batch."""
        source = random.Random(number)
        chosen = source.choices(list(self._operations), self._shares, k=count)
        pools = {
            key: iter(_draw(self._operations[key], chosen.count(key), number))
            for key in dict.fromkeys(chosen)
        }
        made = []
        for key in chosen:
            if source.random() < _SHARE_OF_STRANGE:
                made.append(self._make_strange(source))
                continue
            # a document that leaves nothing to choose gives one case, as often as it is wanted
            case = next(pools[key], None) or _draw(self._operations[key], 1, number)[0]
            made.append(self._dress(case, key, source))
        return made

    def _dress(self, case: Any, key: tuple[str, str], source: random.Random) -> FuzzedRequest:
        """A case as bytes, with somebody's token and sometimes with headers that nobody asked for."""
        prepared = requests.Request(**case.as_transport_kwargs(base_url=BASE)).prepare()
        body = prepared.body or b""
        body = body.encode() if isinstance(body, str) else body
        headers = [
            (name.encode("latin-1"), _encode(value))
            for name, value in prepared.headers.items()
            if not name.startswith("X-Schemathesis")
        ]
        url = urlsplit(prepared.url or BASE)
        target = url.path + (f"?{url.query}" if url.query else "")
        if found := _BOUNDARY.search(
            dict(headers).get(b"Content-Type", b"")
        ):  # which is made anew in every run
            body = body.replace(found[1], b"0" * len(found[1]))
            headers = [(name, value.replace(found[1], b"0" * len(found[1]))) for name, value in headers]
        if source.random() < 0.3:
            headers += pick_strange_headers(source)
        holder = source.choice(("all", "all", "all", *HOLDERS))
        return self._build(*key, holder, prepared.method or "GET", target, headers, body)

    def _make_strange(self, source: random.Random) -> FuzzedRequest:
        method, target, headers, body = make_strange(source)
        return self._build(
            "other", "strange", source.choice(("all", "all", "nobody", "view")), method, target, headers, body
        )

    def _build(
        self,
        operation: str,
        kind: str,
        holder: str,
        method: str,
        target: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
    ) -> FuzzedRequest:
        lines = [f"{method} ".encode() + target.encode() + b" HTTP/1.1", b"Host: " + HOST]
        if holder != "nobody":
            lines.append(f"Authorization: Bearer {self._secrets[holder]}".encode())
        ours = _OURS if holder == "nobody" else _OURS | {b"authorization"}
        lines += [name + b": " + value for name, value in headers if name.lower() not in ours]
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body)}".encode())
        return FuzzedRequest(
            operation, kind, holder, method, target, b"\r\n".join([*lines, b"Connection: close", b"", body])
        )


_OURS = {b"host", b"content-length", b"connection", b"transfer-encoding"}


def _aim(document: dict[str, Any]) -> dict[str, Any]:
    """The document, but a good part of its values are of those that exist here: pure chance never finds them."""
    aimed = copy.deepcopy(document)
    paths = aimed["paths"]
    stream = {"enum": [OPEN_STREAM, "stream-1", "stream-0", "stream-01"]}
    for operation in paths["/v1/streams/{stream_id}"].values():
        operation["parameters"][0]["schema"] = {"anyOf": [stream, operation["parameters"][0]["schema"]]}
    _aim_field(paths["/v1/streams"]["post"], "url", [f"file:{name}" for name in FILES])
    _aim_field(paths["/v1/model"]["post"], "bundle", list(BUNDLES))
    return aimed


def _aim_field(operation: dict[str, Any], name: str, values: list[str]) -> None:
    fields = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    fields[name] = {"anyOf": [{"enum": values}, fields[name]]}


def _pictures(valid: list[bytes]) -> st.SearchStrategy[bytes]:
    def spoil(picture: bytes, number: int) -> bytes:
        return mutate(picture, random.Random(number))

    mutated = st.builds(spoil, st.sampled_from(valid), st.integers(0, 2**32))
    return st.one_of(st.sampled_from(valid), mutated)


def _can_draw(strategy: Any) -> bool:
    try:
        return bool(_draw(strategy, 1, 0))
    except Exception:  # noqa: BLE001 - whatever hypothesis says of an operation that nothing is wrong with
        return False


def _draw(strategy: Any, count: int, number: int) -> list[Any]:
    """Up to `count` cases."""
    drawn: list[Any] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(case: Any) -> None:
        drawn.append(case)

    keep()
    return drawn


def _encode(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("latin-1", "replace")
