"""Access, on one real server with tokens: who gets what, what is refused how, and that no token is ever told."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from service.access.scopes import Scope, scopes_for
from service.access.token_file import add_token, remove_token
from service.access.tokens import Token, hash_secret, make_secret
from service.api.sockets import SUBPROTOCOL
from service.app import create_app
from service.client import Client
from service.errors import ForbiddenError, TooManyRequestsError, UnauthorizedError
from service.settings import Settings
from tests.access_rig import (
    HTTP,
    NAMES,
    PICTURE,
    SECRETS,
    SOCKETS,
    bearer,
    make_token,
    metric,
    open_socket,
    refuse,
    run_command,
    wait_until,
)
from tests.conftest import Server, start_server
from tests.sources import write_codes


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("access") / "tokens"
    for name in NAMES:
        add_token(path, make_token(name))
    return path


@pytest.fixture(scope="module")
def guarded(small_bundle: Path, tokens: Path) -> Iterator[Server]:
    running = start_server(
        *("--port", "0", "--bundle", str(small_bundle)),
        SURGSEG_TOKENS=str(tokens),
        SURGSEG_BUNDLES=str(small_bundle.parent),
        SURGSEG_ORIGINS="https://theatre.example",
        SURGSEG_LOG_FORMAT="json",
        SURGSEG_LOG_LEVEL="debug",
    )
    yield running
    assert running.stop() == 0


def test_every_address_of_the_service_is_in_these_tables(small_bundle: Path) -> None:
    app = create_app(Settings(bundle=small_bundle))
    served = {path for path, methods in app.openapi()["paths"].items() if methods}
    assert {path.replace("{stream_id}", "none") for path in served} <= {path for _, path in HTTP}
    for (method, path), needed in HTTP.items():
        assert scopes_for("http", method, path) == needed
        operation = app.openapi()["paths"].get(path.replace("none", "{stream_id}"), {}).get(method.lower())
        if operation is not None:
            ways = operation.get("security", [])
            assert {scope for way in ways for scope in way.get("bearer", ())} == set(needed or ())
    for path, needed in SOCKETS.items():
        assert scopes_for("websocket", "GET", path.partition("?")[0]) == needed


@pytest.mark.parametrize(("method", "path"), HTTP)
def test_http_without_and_with_each_scope(guarded: Server, method: str, path: str) -> None:
    needed = HTTP[method, path]
    with httpx.Client(base_url=guarded.url) as client:
        bare = client.request(method, path)
        if needed is None:
            assert bare.status_code == 200
            return
        assert bare.status_code == 401
        assert [line.split()[0] for line in bare.headers.get_list("www-authenticate")] == ["Bearer", "Basic"]
        assert bare.headers["content-type"] == "application/problem+json"
        assert bare.json()["slug"] == "unauthorized"
        assert bare.json()["instance"].startswith("urn:surgseg:request:")
        for scope, name in zip(Scope, ("pusher", "viewer", "operator"), strict=True):
            answer = client.request(method, path, headers=bearer(name))
            assert (answer.status_code == 403) == (scope not in needed), (scope, answer.text)
            assert answer.status_code != 401
            if scope not in needed:
                assert answer.json()["slug"] == "forbidden"


@pytest.mark.parametrize("path", SOCKETS)
def test_sockets_without_and_with_each_scope(guarded: Server, path: str) -> None:
    bare = refuse(guarded, path)
    assert (bare.status_code, json.loads(bare.body)["slug"]) == (401, "unauthorized")
    assert [line.split()[0] for line in bare.headers.get_all("www-authenticate")] == ["Bearer", "Basic"]
    for scope, name in zip(Scope, ("pusher", "viewer", "operator"), strict=True):
        if scope in SOCKETS[path]:
            with open_socket(guarded, path, additional_headers=bearer(name)) as socket:
                assert socket.recv(timeout=30)
        else:
            assert refuse(guarded, path, additional_headers=bearer(name)).status_code == 403


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer x", "Basic", "Basic !!!", "Basic /w==", "Digest a", "", "Bearer \xff\xfe", "bearer"],
)
def test_what_is_no_token_is_refused_in_one_form(guarded: Server, header: str) -> None:
    answer = httpx.get(f"{guarded.url}/v1/model", headers={"Authorization": header.encode("latin-1")})
    assert (answer.status_code, answer.json()["slug"]) == (401, "unauthorized")


def test_the_token_may_be_the_password_of_http_basic(guarded: Server) -> None:
    for user in ("", "anybody"):
        answer = httpx.get(f"{guarded.url}/v1/streams", auth=(user, SECRETS["viewer"]))
        assert (answer.status_code, answer.json()) == (200, [])
    turned = base64.b64encode(f"{SECRETS['viewer']}:".encode()).decode()
    headers = {"Authorization": f"Basic {turned}"}
    assert httpx.get(f"{guarded.url}/v1/streams", headers=headers).status_code == 401


def test_a_socket_may_bring_its_token_as_a_subprotocol_which_is_not_repeated(guarded: Server) -> None:
    offered = [Subprotocol(SUBPROTOCOL), Subprotocol(f"surgseg.token.{SECRETS['pusher']}")]
    with open_socket(guarded, "/v1/stream", subprotocols=offered) as socket:
        assert socket.subprotocol == SUBPROTOCOL
        assert json.loads(socket.recv(timeout=30))["type"] == "ready"
        assert SECRETS["pusher"] not in str(socket.response.headers if socket.response else "")
    wrong = [Subprotocol(SUBPROTOCOL), Subprotocol("surgseg.token.x")]
    assert refuse(guarded, "/v1/stream", subprotocols=wrong).status_code == 401


def test_pages_of_other_origins_are_refused(guarded: Server) -> None:
    own = guarded.url
    for origin, is_let_in in (
        (own, True),
        ("https://theatre.example", True),
        ("https://theatre.example:444", False),
        ("http://evil.example", False),
        ("null", False),
    ):
        headers = bearer("everything") | {"Origin": origin}
        post = httpx.post(f"{own}/v1/segment", content=PICTURE, headers=headers)
        assert post.status_code == (200 if is_let_in else 403), origin
        if is_let_in:
            with open_socket(guarded, "/v1/stream", additional_headers=headers):
                pass
        else:
            assert refuse(guarded, "/v1/stream", additional_headers=headers).status_code == 403
        assert httpx.get(f"{own}/v1/streams", headers=headers).status_code == 200


def test_the_client_shows_its_token_and_names_what_is_wrong(guarded: Server) -> None:
    with Client(guarded.url, token=SECRETS["pusher"]) as client:
        assert client.model()["name"] == "small-threshold"
        assert client.segment(PICTURE).mask_hw.shape == (72, 128)
        with client.stream() as stream:
            stream.push(PICTURE)
            assert next(iter(stream.finish())).sequence == 1
        with pytest.raises(ForbiddenError, match="one for view"):
            client.streams()
        with pytest.raises(ForbiddenError, match="one for operate"):
            client.open_pulled("file:a.mp4")
        with pytest.raises(ForbiddenError, match="one for view"):
            client.masks("none")
    with Client(guarded.url) as stranger:
        with pytest.raises(UnauthorizedError, match="no token"):
            stranger.model()
        with pytest.raises(UnauthorizedError, match="no token"):
            stranger.stream()


def test_the_commands_take_a_token_from_a_file_or_the_environment(guarded: Server, tmp_path: Path) -> None:
    write_codes(tmp_path / "clip.ts", range(5))
    (tmp_path / "token").write_text(SECRETS["pusher"] + "\n")
    pushed = run_command(
        *("stream", str(tmp_path / "clip.ts"), "--url", guarded.url, "--mode", "every"),
        *("--token-file", str(tmp_path / "token")),
    )
    assert (pushed.returncode, "answered 5" in pushed.stdout) == (0, True), pushed.stderr
    ready = run_command("ready", "--url", guarded.url, SURGSEG_TOKEN=SECRETS["viewer"])
    assert (ready.returncode, ready.stdout) == (0, "ready\n")
    refused = run_command("ready", "--url", guarded.url)
    assert (refused.returncode, "no token" in refused.stdout) == (1, True)


def test_limits_of_a_token_are_its_own(guarded: Server) -> None:
    with Client(guarded.url, token=SECRETS["hasty"]) as hasty:
        hasty.streams()
        with pytest.raises(TooManyRequestsError) as caught:
            hasty.streams()
        assert 0 < caught.value.retry_after_s <= 5
        answer = httpx.get(f"{guarded.url}/v1/streams", headers=bearer("hasty"))
        assert (answer.status_code, 1 <= int(answer.headers["retry-after"]) <= 5) == (429, True)
    with open_socket(guarded, "/v1/stream", additional_headers=bearer("single")):
        answer = refuse(guarded, "/v1/stream", additional_headers=bearer("single"))
        assert (answer.status_code, "Retry-After" in answer.headers) == (429, True)
        with open_socket(guarded, "/v1/stream", additional_headers=bearer("pusher")):
            pass
    wait_until(lambda: httpx.get(f"{guarded.url}/v1/streams", headers=bearer("viewer")).json() == [])
    with open_socket(guarded, "/v1/stream", additional_headers=bearer("single")):
        pass


def test_what_is_too_large_for_a_token_is_refused(guarded: Server) -> None:
    assert len(PICTURE) < 2000
    url = f"{guarded.url}/v1/segment"
    assert httpx.post(url, content=PICTURE, headers=bearer("small")).status_code == 200
    for body in (bytes(2001), (bytes(1500) for _ in range(2))):
        answer = httpx.post(url, content=body, headers=bearer("small"))
        assert (answer.status_code, answer.json()["slug"]) == (413, "payload-too-large")
    with open_socket(guarded, "/v1/stream", additional_headers=bearer("small")) as socket:
        socket.recv(timeout=30)
        for _ in range(3):
            socket.send(bytes(8) + PICTURE)
            assert isinstance(socket.recv(timeout=30), bytes)
        socket.send(bytes(2001))
        with pytest.raises(ConnectionClosed):
            while True:
                socket.recv(timeout=30)
        assert socket.close_code == 1009


def test_whoever_sends_more_bytes_than_it_may_is_held_back_and_loses_nothing(guarded: Server) -> None:
    with open_socket(guarded, "/v1/stream?mode=every", additional_headers=bearer("slow")) as socket:
        socket.recv(timeout=30)
        frame = bytes(8) + PICTURE + bytes(8000 - len(PICTURE))
        started_at = time.monotonic()
        for _ in range(5):
            socket.send(frame)
        for _ in range(5):
            assert socket.recv(timeout=30)
        # 40,064 bytes, 20,000 of them at once after a pause, the rest at 20,000 a second
        assert time.monotonic() - started_at > 0.9


def status_of(server: Server, name: str) -> int:
    return httpx.get(f"{server.url}/v1/model", headers=bearer(name)).status_code


def test_tokens_are_rotated_without_a_restart(guarded: Server, tokens: Path) -> None:
    """Also: an open stream ends with its token, the others go on, and a broken file changes nothing."""
    new = make_secret()
    with (
        open_socket(guarded, "/v1/stream", additional_headers=bearer("leaver")) as leaver,
        open_socket(guarded, "/v1/stream", additional_headers=bearer("pusher")) as stayer,
    ):
        leaver.recv(timeout=30), stayer.recv(timeout=30)
        add_token(tokens, Token("leaver-2", frozenset({Scope.PUSH}), hash_secret(new)))
        successor = {"Authorization": f"Bearer {new}"}
        wait_until(lambda: httpx.get(f"{guarded.url}/v1/model", headers=successor).status_code == 200)
        assert status_of(guarded, "leaver") == 200
        remove_token(tokens, "leaver")
        error = json.loads(leaver.recv(timeout=30))
        assert (error["type"], error["slug"], error["fatal"]) == ("error", "unauthorized", True)
        with pytest.raises(ConnectionClosed):
            leaver.recv(timeout=30)
        assert leaver.close_code == 1008
        assert status_of(guarded, "leaver") == 401
        whole = tokens.read_text()
        tokens.write_text(whole + "half a line")
        wait_until(lambda: metric(guarded, "surgseg_tokens_stale") == 1)
        assert status_of(guarded, "pusher") == 200
        tokens.write_text(whole)
        wait_until(lambda: metric(guarded, "surgseg_tokens_stale") == 0)
        stayer.send(bytes(8) + PICTURE)
        assert isinstance(stayer.recv(timeout=30), bytes)
    wait_until(lambda: httpx.get(f"{guarded.url}/v1/streams", headers=bearer("viewer")).json() == [])


def test_what_was_refused_is_counted_and_logged_and_no_token_is_told(guarded: Server, tokens: Path) -> None:
    """The last test of this module: everything above has left its lines."""
    stranger = make_secret()
    for headers in ({"Authorization": f"Bearer {stranger}"}, bearer("operator")):
        answer = httpx.get(f"{guarded.url}/metrics?token={stranger}", headers=headers)
        assert stranger not in answer.text + str(answer.headers)
    told = [
        httpx.get(f"{guarded.url}{path}", headers=bearer("viewer")).text
        for path in ("/metrics", "/v1/streams")
    ]
    for status in (401, 403, 429):
        assert metric(guarded, f'surgseg_requests_refused_total{{status="{status}"}}') > 0
    wait_until(lambda: "refused 401 GET '/metrics'" in "".join(guarded.output))
    lines = [json.loads(line) for line in guarded.output]
    log = "".join(guarded.output)
    assert all({"at", "level", "logger", "message"} <= set(line) for line in lines)
    assert any("operator: POST '/v1/streams'" in line["message"] for line in lines)
    assert any("Line" in line["message"] and "stay as they were" in line["message"] for line in lines)
    assert any(line.get("stream") and line.get("request") for line in lines)
    hashes = [hash_secret(secret) for secret in SECRETS.values()]
    basic = [base64.b64encode(f"{user}:{SECRETS['viewer']}".encode()).decode() for user in ("", "anybody")]
    for text in (log, *told):
        assert [word for word in (*SECRETS.values(), *hashes, *basic, stranger) if word in text] == []
