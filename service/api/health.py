"""Is it alive, is it ready, what does it serve, how is it doing."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from service.contract.model_card import ModelCard, Precision
from service.errors import UnavailableError
from service.pipeline.pipeline import Pipeline
from service.telemetry import Telemetry

router = APIRouter()


@router.get("/healthz", tags=["health"], summary="The process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", tags=["health"], summary="A recent inference has really succeeded")
async def readyz(request: Request) -> Response:
    pipeline: Pipeline = request.app.state.pipeline
    pipeline.check_open()
    if not pipeline.is_ready():
        raise UnavailableError(
            "No inference has succeeded lately.", "a model that answers", "Restart the service if this stays."
        )
    return JSONResponse({"status": "ready"})


class Running(BaseModel):
    """What computes the masks: `sha256` is that of the graph that runs, `fingerprint` that of the bundle's card."""

    backend: str
    precision: Precision
    runtime_version: str
    batch_sizes: tuple[int, ...]
    sha256: str
    fingerprint: str


class ServedModel(ModelCard):
    """The card of the bundle, and what runs it; `running` is null until the service is ready."""

    running: Running | None


@router.get("/v1/model", tags=["model"], summary="The card of the model that is served, and what runs it")
async def model(request: Request) -> ServedModel:
    pipeline: Pipeline = request.app.state.pipeline
    bundle, backend = pipeline.bundle, pipeline.backend
    running = backend and Running(
        backend=backend.name,
        precision=backend.precision,
        runtime_version=backend.version,
        batch_sizes=backend.batch_sizes,
        sha256=bundle.hash_of(backend.precision),
        fingerprint=bundle.fingerprint,
    )
    return ServedModel(**dict(bundle.card), running=running)


@router.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    telemetry: Telemetry = request.app.state.telemetry
    body, content_type = await asyncio.to_thread(telemetry.render, request.headers.get("accept", ""))
    return Response(body, media_type=content_type)
