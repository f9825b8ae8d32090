"""Is it alive, is it ready, how is it doing."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

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


@router.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    telemetry: Telemetry = request.app.state.telemetry
    body, content_type = await asyncio.to_thread(telemetry.render, request.headers.get("accept", ""))
    return Response(body, media_type=content_type)
