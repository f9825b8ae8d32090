"""HTTP that no document names: other addresses and methods, odd paths, odd headers, files asked for in odd ranges."""

from __future__ import annotations

import random

Header = tuple[bytes, bytes]

_FILES = ("/", "/index.html", "/viewer.js", "/docs", "/openapi.json")
_PATHS = (
    *(
        "/v1",
        "/v1/",
        "/v1/segment/",
        "/v1/streams/",
        "/v1/streams//masks",
        "/v1/streams/stream-1/masks",
        "/v1/model/",
    ),
    *("/v1/stream", "/v1/scene", "/healthz/", "/metrics/", "/readyz/x", "/docs/", "/openapi.json/", "/redoc"),
    *(
        "/nothing",
        "/nothing/",
        "//",
        "//evil.example/",
        "/viewer.js/",
        "/.",
        "/..",
        "/../service/app.py",
        "/web",
        "/%00",
    ),
    *(
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%ff%fe",
        "/%",
        "/%zz",
        "/%0d%0aX:%20y",
        "/a%0ab",
    ),
    *(
        "/v1/streams/%00",
        "/v1/streams/%0a",
        "/v1/streams/..%2f..",
        "/v1/streams/%F0%9F%98%80",
        "/v1/streams/١",
    ),
    *("*", "http://evil.example/v1/model", "/;a=b", "/?", "/#x", "/\xff\xfe", "/viewer.js%00.png"),
)
_METHODS = ("GET", "GET", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
_RANGES = (
    *(
        b"bytes=0-0",
        b"bytes=0-",
        b"bytes=-1",
        b"bytes=-0",
        b"bytes=",
        b"bytes=-",
        b"bytes=a-b",
        b"bytes=5-2",
        b"bytes=+0-+5",
    ),
    *(
        b"bytes=99999999999999999999-",
        b"bytes=0-0,2-2",
        b"bytes=0-,0-,0-",
        b"bytes=1_0-2_0",
        b"bytes= 0 - 5 ",
        b"lines=1-2",
    ),
    *(
        b"bytes=0-" + b"9" * 5000,
        b"bytes=" + b"0-1," * 2000,
        b"bytes=-9" + b"9" * 400,
        b"bytes=\xff-\xfe",
        b"bytes=0--5",
        b"=",
        b"",
    ),
)
_ODD = (
    *((b"Range", each) for each in _RANGES),
    *((b"If-Range", each) for each in (b'"x"', b"", b"yesterday", b"\xff")),
    *((b"If-None-Match", each) for each in (b"*", b'"x"', b"W/", b",,,")),
    *(
        (b"If-Modified-Since", each)
        for each in (b"never", b"Sun, 99 Foo 9999 99:99:99 GMT", b"0", b"Mon, 01 Jan 0001 00:00:00 +9999")
    ),
    *(
        (b"Accept", each)
        for each in (
            b"",
            b"*/*;q=2",
            b"text/html;q=x",
            b"application/openmetrics-text; version=9.9.9",
            b"a" * 4000,
        )
    ),
    *((b"Accept-Encoding", each) for each in (b"gzip", b"br;q=0", b"identity;q=0,*;q=0")),
    *(
        (b"Content-Type", each)
        for each in (b"", b"multipart/form-data", b"multipart/form-data; boundary=", b"x" * 3000)
    ),
    *(
        (b"Content-Type", b"multipart/form-data; boundary=" + each)
        for each in (b"b", b'"', b"\xff", b"b" * 500)
    ),
    *((b"Content-Encoding", each) for each in (b"gzip", b"zip-bomb")),
    *(
        (b"Origin", each)
        for each in (b"null", b"http://evil.example", b"http://[", b"\xff", b"http://" + b"a" * 4000)
    ),
    *(
        (b"Authorization", each)
        for each in (b"Bearer", b"Basic !!!", b"Bearer \xff", b"Basic /w==", b"Digest " + b"a" * 3000)
    ),
    *((b"Cookie", each) for each in (b"a=b; " * 200, b"=", b"\xff=\xfe")),
    *((b"X-Forwarded-For", each) for each in (b"127.0.0.1", b"\x1b[31mred", b"a" * 2000)),
    *(
        (b"Forwarded", b'for="[::1]";host=evil'),
        (b"X-Forwarded-Host", b"evil.example"),
        (b"Expect", b"100-continue"),
    ),
    *((b"Upgrade", each) for each in (b"h2c", b"websocket, h2c", b"")),
    *(
        (b"X-" + b"y" * 200, b"z"),
        (b"X-Many", b"a,"),
        (b"User-Agent", b"\x80\x81\x1b]0;owned\x07"),
        (b"Te", b"trailers"),
    ),
)


def pick_strange_headers(source: random.Random) -> list[Header]:
    """One to three headers that nobody asked for."""
    return [source.choice(_ODD) for _ in range(source.randint(1, 3))]


def make_strange(source: random.Random) -> tuple[str, str, list[Header], bytes]:
    """Method, target, headers and body."""
    kind = source.choice(("file", "file", "address", "address", "query", "length", "handshake"))
    method, headers, body = source.choice(_METHODS), [], b""
    if kind == "file":
        method, target = source.choice(("GET", "GET", "HEAD")), source.choice(_FILES)
        headers = [(b"Range", source.choice(_RANGES))]
    elif kind == "address":
        target = source.choice(_PATHS)
        body = (
            source.randbytes(source.choice((0, 0, 10, 3000))) if method in ("POST", "PUT", "PATCH") else b""
        )
    elif kind == "query":
        target = source.choice(("/v1/segment", "/v1/streams", "/healthz", "/")) + "?" + _make_query(source)
    elif kind == "handshake":
        target, headers = (
            source.choice(("/v1/stream", "/v1/scene", "/v1/nothing", "/")),
            _make_handshake(source),
        )
    else:
        letter = source.choice(("a", "%41", "%F0%9F%98%80", "/", "%0A", "."))
        target = source.choice(("/", "/v1/streams/", "/v1/")) + letter * source.choice((300, 5000))
    if source.random() < 0.5:
        headers = headers + pick_strange_headers(source)
    return method, target, headers, body


def _make_query(source: random.Random) -> str:
    names = ("mask", "size", "mask[]", "", "%00", "token", "a" * 500, "%ff")
    values = (
        "png",
        "PNG",
        "",
        "%00",
        "1_0",
        "+5",
        "%20png",
        "%0d%0aSet-Cookie:%20a",
        "x" * 3000,
        "٣",
        "\xff",
    )
    return "&".join(f"{source.choice(names)}={source.choice(values)}" for _ in range(source.randint(1, 4)))


_PROTOCOLS = (b",,", b"surgseg.token.", b"surgseg.token.x, surgseg.v1", b"\xff")


def _make_handshake(source: random.Random) -> list[Header]:
    """Of a WebSocket, mostly with something that is wrong."""
    headers = {
        b"Upgrade": source.choice((b"websocket", b"WebSocket", b"websocket, x")),
        b"Connection": source.choice((b"Upgrade", b"keep-alive, Upgrade", b"upgrade, close")),
        b"Sec-WebSocket-Version": source.choice((b"13", b"13", b"8", b"+13", b"")),
        b"Sec-WebSocket-Key": source.choice((b"AAAAAAAAAAAAAAAAAAAAAA==", b"AAAA", b"", b"!", b"A" * 9000)),
    }
    if source.random() < 0.3:
        headers[b"Sec-WebSocket-Protocol"] = source.choice(
            (b",,", b"surgseg.token.", b"surgseg.token.x, surgseg.v1", b"\xff")
        )
    if source.random() < 0.3:
        headers |= {f"X-{number}".encode(): b"y" for number in range(source.choice((10, 150)))}
    if source.random() < 0.3:
        del headers[source.choice(list(headers))]
    return list(headers.items())
