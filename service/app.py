"""The only place where the parts are built and joined, and the process that serves them."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import anyio
import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.routing import Match, Mount
from starlette.types import Scope

from service.api import health, images, reference, scene, sockets, streams
from service.api.problems import install_problem_handlers
from service.backends import open_backend
from service.backends.base import Backend
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import Bundle, open_bundle
from service.errors import BundleError, InvalidRequestError, SurgsegError
from service.pipeline.pipeline import Pipeline
from service.settings import Settings, load_settings
from service.telemetry import Telemetry, set_up_logging

_log = logging.getLogger("surgseg")
_WEB = Path(__file__).parent / "web"
_STOP_TIMEOUT_S = 5.0
_FAILURE_TIMEOUT_S = 10.0
_FAREWELL_S = 0.5
_UNSENT_BYTES = 128 * 1024


def create_app(
    settings: Settings,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_fatal: Callable[[BaseException], None] | None = None,
) -> FastAPI:
    """The whole service as an ASGI application. Raises BundleError when the bundle cannot be trusted.

    The backend is opened once the application runs, off the event loop: until then /healthz answers, /readyz
    and the rest say 503. `on_ready` is called on the event loop; `on_fatal` from any thread, when the
    backend cannot be opened or has died. Without one, the process is ended: a service without an engine must
    not linger.
    """
    bundle = _open_bundle(settings)
    telemetry = Telemetry(settings.batch_sizes)
    fatal = on_fatal or _end_process
    pipeline = Pipeline(
        bundle,
        lambda: _open_backend(settings, bundle),
        settings,
        telemetry,
        fatal,
    )

    app = FastAPI(
        title="surgseg",
        version=version("surgseg"),
        summary="Surgical video in, instrument masks out.",
        lifespan=_live_with(pipeline, telemetry, on_ready, fatal),
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.telemetry = telemetry
    app.state.pipeline = pipeline
    app.state.draining = asyncio.Event()
    app.state.picture_threads = anyio.CapacityLimiter(settings.max_requests)
    install_problem_handlers(app)
    for part in (images, streams, sockets, health, reference):
        app.include_router(part.router)
    if settings.scene:
        app.include_router(scene.router)
    app.router.routes.append(_WebMount("/", StaticFiles(directory=_WEB, html=True), name="web"))
    return app


def _open_bundle(settings: Settings) -> Bundle:
    bundle = open_bundle(settings.bundle or DEFAULT_BUNDLE)
    if settings.fingerprint not in (None, bundle.fingerprint):
        raise BundleError(
            f"The bundle {bundle.folder} has the fingerprint {bundle.fingerprint}.",
            f"{settings.fingerprint}, as SURGSEG_FINGERPRINT says",
            "Fetch the bundle that was approved, or approve this one by its fingerprint.",
        )
    return bundle


def _open_backend(settings: Settings, bundle: Bundle) -> Backend:
    return open_backend(
        settings.backend,
        bundle,
        batch_sizes=settings.batch_sizes,
        threads=settings.threads,
        precision=settings.precision,
        engines=settings.engines,
    )


def _live_with(
    pipeline: Pipeline,
    telemetry: Telemetry,
    on_ready: Callable[[], None],
    on_fatal: Callable[[BaseException], None],
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Start the pipeline with the application, without waiting for it; stop it with the application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(_start(pipeline, telemetry, on_ready, on_fatal))
        yield
        app.state.draining.set()
        starting.cancel()
        await asyncio.to_thread(pipeline.stop, _STOP_TIMEOUT_S)

    return lifespan


class _WebMount(Mount):
    """The viewer's files at /, which hide neither the API's own 404 and 405 nor WebSockets."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As a Mount, for HTTP outside /v1."""
        if scope["type"] != "http" or scope["path"].startswith("/v1/"):
            return Match.NONE, {}
        return super().matches(scope)


async def _start(
    pipeline: Pipeline,
    telemetry: Telemetry,
    on_ready: Callable[[], None],
    on_fatal: Callable[[BaseException], None],
) -> None:
    try:
        backend = await asyncio.wrap_future(pipeline.start())
    except Exception as error:  # noqa: BLE001 - whatever the runtime raises, the process must say it and end
        on_fatal(error)
        return
    card = pipeline.bundle.card
    telemetry.describe_model(
        name=card.name,
        version=card.version,
        network=card.network,
        backend=backend.name,
        precision=backend.precision,
        runtime_version=backend.version,
        sha256=pipeline.bundle.hash_of(backend.precision),
    )
    pipeline.warm_decoders()
    # in a thread of its own: nobody has to wait for it, and until it knows something all are admitted
    threading.Thread(target=pipeline.learn_costs, name="surgseg-calibration", daemon=True).start()
    _log.info("%s %s on %s, %s", card.name, card.version, backend.name, backend.precision)
    on_ready()


def _end_process(error: BaseException) -> None:
    _log.critical("%s", error)
    os._exit(1)


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
    set_up_logging(settings.log_level)
    listener = _listen(settings.host, settings.port, settings.viewer_timeout_s)
    with listener:
        server = _make_server(settings, listener)
        server.run(sockets=[listener])
    if server.failure is not None:
        if isinstance(server.failure, SurgsegError) and not server.is_ready:
            raise server.failure
        _log.critical("surgseg ends because its engine failed: %s", server.failure)
        return 1
    return 130 if server.signal == signal.SIGINT else 0


def _make_server(settings: Settings, listener: socket.socket) -> _Server:
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def announce() -> None:
        server.is_ready = True
        _log.info("surgseg is ready at http://%s/", address)

    app = create_app(settings, on_ready=announce, on_fatal=lambda error: server.fail(error))
    server = _Server(
        uvicorn.Config(
            app,
            loop="uvloop" if sys.platform != "win32" else "asyncio",
            http="httptools",
            ws="websockets-sansio",
            ws_max_size=settings.max_body_bytes,
            # Pictures and masks are compressed already; deflating them again costs time and memory.
            ws_per_message_deflate=False,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=int(_STOP_TIMEOUT_S),
        )
    )
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
