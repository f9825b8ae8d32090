"""HTTP requests that schemathesis makes from the service's own OpenAPI document, and such as no document names.

Every request is bytes, made from the seed and the document alone: the same in every run.
"""

from __future__ import annotations

import copy
import random
import re
import warnings
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisDeprecationWarning
from schemathesis import GenerationMode

from tests.soak.fuzzing_site import BUNDLES, FILES, HOLDERS, mutate
from tests.soak.strange_requests import make_strange, pick_strange_headers

BASE = "http://fuzzed"
HOST = b"HOST.AND.PORT"
OPEN_STREAM = "stream-open"
# a change of the model takes seconds
_SHARES = {"POST /v1/model/rollback": 0.05, "POST /v1/model": 0.1, "POST /v1/streams": 2.0}
_KIND_SHARES = {"positive aimed": 3.0}
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
        self._operations: dict[tuple[str, str], Any] = {}
        for suffix, described in (("", document), (" aimed", _aim(document))):
            for found in schemathesis.openapi.from_dict(described).get_all_operations():
                operation = found.ok()
                for mode in GenerationMode:
                    key = f"{operation.method.upper()} {operation.path}", mode.value + suffix
                    self._operations[key] = operation.as_strategy(generation_mode=mode)
        self._operations = {key: each for key, each in self._operations.items() if _can_draw(each)}
        self._shares = [
            _SHARES.get(name, 1.0) * _KIND_SHARES.get(kind, 1.0) for name, kind in self._operations
        ]

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
            if not name.startswith(("X-Schemathesis", "Connection"))
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
        """What no document names; now and then with bytes changed anywhere, so that it may be no HTTP at all."""
        request = self._build_strange(source)
        if source.random() < 0.15:
            return replace(request, kind="mangled", data=mutate(request.data, source))
        return request

    def _build_strange(self, source: random.Random) -> FuzzedRequest:
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
        if all(name.lower() != b"connection" for name, _ in headers):
            lines.append(b"Connection: close")
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body)}".encode())
        return FuzzedRequest(operation, kind, holder, method, target, b"\r\n".join([*lines, b"", body]))


_OURS = {b"host", b"content-length", b"transfer-encoding"}


def _aim(document: dict[str, Any]) -> dict[str, Any]:
    """The operations that name something, with only values that may exist here: pure chance never finds them."""
    aimed = copy.deepcopy(document)
    aimed["paths"] = {
        path: aimed["paths"][path] for path in ("/v1/streams/{stream_id}", "/v1/streams", "/v1/model")
    }
    for path in ("/v1/streams", "/v1/model"):
        del aimed["paths"][path]["get"]
    for operation in aimed["paths"]["/v1/streams/{stream_id}"].values():
        operation["parameters"][0]["schema"] = {"enum": [OPEN_STREAM, "stream-1", "stream-0", "stream-01"]}
    _aim_field(aimed["paths"]["/v1/streams"]["post"], "url", [f"file:{name}" for name in FILES])
    _aim_field(aimed["paths"]["/v1/model"]["post"], "bundle", list(BUNDLES))
    return aimed


def _aim_field(operation: dict[str, Any], name: str, values: list[str]) -> None:
    operation["requestBody"]["content"]["application/json"]["schema"]["properties"][name] = {"enum": values}


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

    with warnings.catch_warnings():
        # hypothesis takes the random numbers of other threads for ours
        warnings.simplefilter("ignore", HypothesisDeprecationWarning)
        keep()
    return drawn


def _encode(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("latin-1", "replace")
