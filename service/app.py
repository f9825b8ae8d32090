"""The only place where the parts are built and joined."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Mount
from starlette.types import Receive, Scope, Send

from service.access.doorkeeper import Doorkeeper
from service.access.origins import is_loopback
from service.access.token_file import TokenFile
from service.api import health, images, model, reference, scene, sockets, streams
from service.api.gate import Gate
from service.api.problems import install_problem_handlers
from service.audit.meter import AuditMeter
from service.audit.recorder import AuditRecorder
from service.audit.shelf import KeepRules
from service.bundles import DEFAULT_BUNDLE
from service.pipeline.approval import open_approved
from service.pipeline.journal import SILENT
from service.pipeline.pipeline import Pipeline
from service.settings import Settings
from service.telemetry import Telemetry

_log = logging.getLogger("surgseg")
_WEB = Path(__file__).parent / "web"
_AUDIT_FILE_BYTES = 64 * 2**20
STOP_TIMEOUT_S = 5.0  # what the engine gets, and uvicorn for its connections


def create_app(
    settings: Settings,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_fatal: Callable[[BaseException], None] | None = None,
) -> FastAPI:
    """The whole service as an ASGI application.

    Raises BundleError when the bundle cannot be trusted, InvalidRequestError when the file of tokens cannot be read, or
    no audit record can be kept.

    The backend is opened once the application runs, off the event loop: until then /healthz answers, /readyz
    and the rest say 503. `on_ready` is called on the event loop; `on_fatal` from any thread, when the
    backend cannot be opened or has died. Without one, the process is ended: a service without an engine must
    not linger.
    """
    bundle = open_approved(settings.bundle or DEFAULT_BUNDLE, settings.fingerprint)
    telemetry = Telemetry(settings.batch_sizes)
    gate = _make_gate(settings, telemetry)
    fatal = on_fatal or _end_process
    recorder = _begin_audit(settings, AuditMeter(telemetry.registry))
    pipeline = Pipeline(bundle, settings, telemetry, fatal, recorder or SILENT)
    app = FastAPI(
        title="surgseg",
        version=version("surgseg"),
        summary="Surgical video in, instrument masks out.",
        lifespan=_live_with(pipeline, recorder, gate, on_ready, fatal),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.telemetry = telemetry
    app.state.pipeline = pipeline
    app.state.draining = asyncio.Event()
    app.state.picture_threads = anyio.CapacityLimiter(settings.max_requests)
    install_problem_handlers(app)
    app.add_middleware(gate.wrap)
    _add_routes(app, settings)
    app.openapi = reference.complete(app.openapi)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, settings: Settings) -> None:
    for part in (images, streams, sockets, model, health, reference):
        app.include_router(part.router)
    if settings.scene:
        app.include_router(scene.router)
    app.include_router(sockets.unknown)
    app.router.routes.append(_WebMount("/", _WebFiles(directory=_WEB, html=True), name="web"))


def _make_gate(settings: Settings, telemetry: Telemetry) -> Gate:
    tokens = None if settings.tokens is None else TokenFile(settings.tokens)
    doorkeeper = Doorkeeper(
        None if tokens is None else tokens.read(),
        origins=settings.origins,
        is_private=is_loopback(settings.host),
    )
    return Gate(doorkeeper, telemetry, tokens)


def _begin_audit(settings: Settings, meter: AuditMeter) -> AuditRecorder | None:
    if settings.audit is None:
        return None
    rules = KeepRules(
        keep_s=settings.audit_days * 86_400.0,
        max_bytes=settings.audit_bytes,
        file_bytes=min(_AUDIT_FILE_BYTES, settings.audit_bytes // 4),
    )
    return AuditRecorder(settings.audit, rules, meter, is_strict=settings.audit_strict)


def _live_with(
    pipeline: Pipeline,
    recorder: AuditRecorder | None,
    gate: Gate,
    on_ready: Callable[[], None],
    on_fatal: Callable[[BaseException], None],
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Start the pipeline with the application, without waiting for it; stop it with the application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if recorder is not None:
            recorder.start()
        starting = asyncio.create_task(_start(pipeline, on_ready, on_fatal))
        watching = asyncio.create_task(_watch(gate, on_fatal))
        yield
        app.state.draining.set()
        starting.cancel()
        watching.cancel()
        await asyncio.to_thread(pipeline.stop, STOP_TIMEOUT_S)
        if recorder is not None:
            await asyncio.to_thread(recorder.stop, STOP_TIMEOUT_S)

    return lifespan


async def _watch(gate: Gate, on_fatal: Callable[[BaseException], None]) -> None:
    """A gate that nobody watches would let in whoever was sent away."""
    try:
        await gate.watch()
    except Exception as error:  # noqa: BLE001 - as above, whatever it is
        on_fatal(error)


class _WebMount(Mount):
    """The viewer's files at /, which hide neither the API's own 404 and 405 nor WebSockets."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As a Mount, for HTTP outside /v1."""
        if scope["type"] != "http" or scope["path"].startswith("/v1/"):
            return Match.NONE, {}
        return super().matches(scope)


class _WebFiles(StaticFiles):
    """Files that are always sent whole: they are small, and ranges are one more thing that strangers may get wrong."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As StaticFiles, without the header `Range`."""
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As StaticFiles, without its redirections, which repeat whatever the header `Host` says."""
        response = await super().get_response(path, scope)
        if isinstance(response, RedirectResponse):
            raise HTTPException(404)
        return response

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The file, and the word that no part of it is to be had."""
        response = super().file_response(*args, **kwargs)
        response.headers["Accept-Ranges"] = "none"
        return response


async def _start(
    pipeline: Pipeline, on_ready: Callable[[], None], on_fatal: Callable[[BaseException], None]
) -> None:
    try:
        backend = await asyncio.wrap_future(pipeline.start())
    except Exception as error:  # noqa: BLE001 - whatever the runtime raises, the process must say it and end
        on_fatal(error)
        return
    card = pipeline.bundle.card
    pipeline.warm_decoders()
    # in a thread of its own: nobody has to wait for it, and until it knows something all are admitted
    threading.Thread(target=pipeline.learn_costs, name="surgseg-calibration", daemon=True).start()
    _log.info("%s %s on %s, %s", card.name, card.version, backend.name, backend.precision)
    on_ready()


def _end_process(error: BaseException) -> None:
    _log.critical("%s", error)
    os._exit(1)
