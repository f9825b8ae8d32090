"""The process that serves the application: its socket, its signals, its end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.access.origins import is_loopback
from service.allocator import limit_arenas
from service.app import STOP_TIMEOUT_S, create_app
from service.errors import InvalidRequestError, SurgsegError
from service.logs import set_up_logging
from service.native_output import log_native_output
from service.processors import available_cores
from service.settings import Settings, load_settings
from service.websocket_protocol import WebSocketProtocol

_log = logging.getLogger("surgseg")
_FAILURE_TIMEOUT_S = 10.0
_FAREWELL_S = 0.5
_UNSENT_BYTES = 128 * 1024


class _Server(uvicorn.Server):
    """Uvicorn, but a signal first drains: streams are finished and closed by us, with 1001 and a reason."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self.is_ready = False
        self.signal: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal or a failure."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: leave at once."""
        if self.signal is not None:
            self.force_exit = self.should_exit = True
            return
        self.signal = sig
        self._end_soon()

    def fail(self, error: BaseException) -> None:
        """End the process because of `error`, from any thread; by force if it does not end in good time."""
        self.failure = error
        watchdog = threading.Timer(_FAILURE_TIMEOUT_S, os._exit, (1,))
        watchdog.daemon = True
        watchdog.start()
        self._end_soon()

    def _end_soon(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_ending)

    def _begin_ending(self) -> None:
        self._ending = self._ending or asyncio.create_task(self._end())

    async def _end(self) -> None:
        app = self.config.app
        assert isinstance(app, FastAPI)
        app.state.pipeline.refuse_new()
        app.state.pipeline.drain_pulled()
        app.state.draining.set()
        timeout_s = app.state.settings.drain_timeout_s + 1.0 if self.failure is None else _FAREWELL_S
        ends_at = time.monotonic() + timeout_s
        while app.state.pipeline.streams() and time.monotonic() < ends_at:
            await asyncio.sleep(0.01)
        self.should_exit = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `surgseg serve`; each wins over its environment variable."""
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="bundle to serve (default: the shipped one)"
    )
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for a free one (default: 8000)")
    parser.add_argument("--backend", metavar="NAME", help="inference runtime (default: auto)")


def run_server(args: argparse.Namespace) -> int:
    """`surgseg serve`: serve until a signal, give the exit code. Raises SurgsegError if it cannot start."""
    settings = load_settings(bundle=args.bundle, host=args.host, port=args.port, backend=args.backend)
    set_up_logging(settings.log_level, settings.log_format)
    _check_exposure(settings)
    certificate = _load_certificate(settings)
    listener = _listen(settings.host, settings.port, settings.viewer_timeout_s)
    with listener:
        server = _make_server(settings, listener, certificate)
        limit_arenas(available_cores())
        log_native_output()  # from here on the process is the service's alone
        set_up_logging(settings.log_level, settings.log_format)
        server.run(sockets=[listener])
    if server.failure is not None:
        if isinstance(server.failure, SurgsegError) and not server.is_ready:
            raise server.failure
        _log.critical("surgseg ends because its engine failed: %s", server.failure)
        return 1
    return 130 if server.signal == signal.SIGINT else 0


def _check_exposure(settings: Settings) -> None:
    """Raise InvalidRequestError where others than this machine would be served and nobody said that they may be."""
    if is_loopback(settings.host):
        return
    if settings.tokens is None and not settings.open:
        raise InvalidRequestError(
            f"The host is {settings.host}, so others can reach the service, and there are no tokens.",
            "a file of tokens, or a word that none are wanted",
            "Make one with `surgseg token new` and name it in SURGSEG_TOKENS; or set SURGSEG_OPEN=true, "
            "and everybody who reaches this machine may do everything.",
        )
    if settings.tokens is None:
        _log.warning("SURGSEG_OPEN: everybody who reaches this machine may push, view and operate")
    elif settings.tls_certificate is None:
        _log.warning(
            "Tokens and pictures are not encrypted on the way unless something in front of this does it"
        )


def _load_certificate(settings: Settings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the certificate of the settings. Raises InvalidRequestError."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None:
        raise InvalidRequestError(
            "SURGSEG_TLS_KEY is set and SURGSEG_TLS_CERTIFICATE is not.",
            "both or neither",
            "Set the other one.",
        )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty passphrase, because OpenSSL would otherwise ask for one on the terminal, and wait.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except OSError as error:
        raise InvalidRequestError(
            f"TLS cannot use the certificate {certificate} with the key {key} ({error.strerror or error}).",
            "a certificate and its own key in PEM, and no passphrase",
            "Check SURGSEG_TLS_CERTIFICATE and SURGSEG_TLS_KEY.",
        ) from error
    return context


def _make_server(settings: Settings, listener: socket.socket, certificate: ssl.SSLContext | None) -> _Server:
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def announce() -> None:
        server.is_ready = True
        _log.info("surgseg is ready at %s://%s/", "http" if certificate is None else "https", address)

    app = create_app(settings, on_ready=announce, on_fatal=lambda error: server.fail(error))
    server = _Server(
        uvicorn.Config(
            app,
            loop="uvloop" if sys.platform != "win32" else "asyncio",
            http="httptools",
            ws=WebSocketProtocol,
            ws_max_size=settings.max_body_bytes,
            # Pictures and masks are compressed already; deflating them again costs time and memory.
            ws_per_message_deflate=False,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=int(STOP_TIMEOUT_S),
        )
    )
    server.config.load()
    server.config.ssl = certificate
    return server


def _listen(host: str, port: int, silence_s: float) -> socket.socket:
    """A listening socket, whose clients may take nothing for `silence_s`. Raises InvalidRequestError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise InvalidRequestError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}.",
            "an address of this machine and a free port",
            "End what uses it, or choose another with --port (0 takes a free one).",
        ) from error
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Accepted sockets inherit it. What a slow viewer has not fetched then stays in its mailbox, where the
        # newest wins, and not as megabytes of stale masks in the kernel's send buffer.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Inherited too. We close the WebSocket of a client that takes nothing; this frees what it was still to take.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * silence_s))
    return listener
