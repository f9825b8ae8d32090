"""The viewer page behind tokens and TLS, in a real browser: the token is the password that the browser asks for."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from playwright.sync_api import Browser, BrowserContext, Error

from service.access.scopes import Scope
from service.access.token_file import add_token
from service.access.tokens import Token, hash_secret, make_secret
from tests.conftest import Server, start_server
from tests.end_to_end.conftest import CHROMIUM

SCENE = "/?width=320&height=180&fps=10&view=full&seed=2"
WAIT_MS = 30_000
SECRETS = {"nurse": make_secret(), "watcher": make_secret()}
OPEN_SOCKET = """
([url, protocols]) => new Promise((resolve) => {
  const socket = new WebSocket(url, protocols);
  socket.onmessage = () => { resolve(`open ${socket.protocol}`); socket.close(); };
  socket.onclose = (closed) => resolve(`closed ${closed.code}`);
})
"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]


@pytest.fixture(scope="module")
def guarded(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("viewer")
    for name, scopes in (("nurse", {Scope.PUSH, Scope.VIEW}), ("watcher", {Scope.VIEW})):
        add_token(folder / "tokens", Token(name, frozenset(scopes), hash_secret(SECRETS[name])))
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    running = start_server(
        *("--port", "0", "--bundle", str(small_bundle)),
        SURGSEG_TOKENS=str(folder / "tokens"),
        SURGSEG_TLS_CERTIFICATE=str(folder / "server.pem"),
    )
    yield running
    running.stop()


@pytest.fixture
def sign_in(browser: Browser, guarded: Server) -> Iterator[Callable[[str | None], BrowserContext]]:
    opened: list[BrowserContext] = []

    def sign_in_as(name: str | None) -> BrowserContext:
        shown: dict[str, Any] = {}
        if name is not None:
            shown["http_credentials"] = {"username": "", "password": SECRETS[name], "origin": guarded.url}
        opened.append(browser.new_context(ignore_https_errors=True, **shown))
        return opened[-1]

    yield sign_in_as
    for context in opened:
        context.close()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The address of a page of another origin."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory="docs")
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_the_page_and_its_streams_work_with_the_token_as_password(guarded: Server, sign_in: Any) -> None:
    assert guarded.url.startswith("https://")
    page = sign_in("nurse").new_page()
    assert page.goto(guarded.url + SCENE).status == 200
    page.wait_for_function("window.surgseg?.framesShown >= 5", timeout=WAIT_MS)
    assert page.evaluate("window.surgseg.mismatches") == 0


def test_without_a_token_the_browser_asks_for_a_password_and_there_is_no_page(
    guarded: Server, sign_in: Any
) -> None:
    page = sign_in(None).new_page()
    with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):  # nobody answers the question
        page.goto(guarded.url)


def test_a_token_that_may_not_push_is_told_so_on_the_page(guarded: Server, sign_in: Any) -> None:
    page = sign_in("watcher").new_page()
    page.goto(guarded.url + SCENE)
    page.wait_for_function("window.surgseg?.connection === 'refused'", timeout=WAIT_MS)
    assert "is for view. Expected one for push." in page.locator("#message-text").inner_text()


def test_a_script_may_bring_a_token_itself(guarded: Server, sign_in: Any) -> None:
    """As a sub-protocol, on a page for which the browser has no password."""
    page = sign_in(None).new_page()
    page.goto(f"{guarded.url}/healthz")
    url = guarded.url.replace("https:", "wss:") + "/v1/stream"
    offered = ["surgseg.v1", f"surgseg.token.{SECRETS['nurse']}"]
    assert page.evaluate(OPEN_SOCKET, [url, offered]) == "open surgseg.v1"
    assert page.evaluate(OPEN_SOCKET, [url, ["surgseg.v1"]]) == "closed 1006"


def test_a_page_of_another_origin_gets_nothing_with_the_browsers_password(
    guarded: Server, sign_in: Any, elsewhere: str
) -> None:
    context = sign_in("nurse")
    own = context.new_page()
    own.goto(f"{guarded.url}/v1/model")
    url = guarded.url.replace("https:", "wss:") + "/v1/stream"
    assert own.evaluate(OPEN_SOCKET, [url, []]) == "open "
    stranger = context.new_page()
    stranger.goto(elsewhere)
    assert stranger.evaluate(OPEN_SOCKET, [url, []]) == "closed 1006"
    offered = ["surgseg.v1", f"surgseg.token.{SECRETS['nurse']}"]
    assert stranger.evaluate(OPEN_SOCKET, [url, offered]) == "closed 1006"
