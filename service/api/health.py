"""Is it alive, is it ready, what does it serve, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.contract.model_card import ModelCard
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


@router.get("/v1/model", tags=["model"], summary="The card of the model that is served")
async def model(request: Request) -> ModelCard:
    card: ModelCard = request.app.state.pipeline.bundle.card
    return card


@router.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    telemetry: Telemetry = request.app.state.telemetry
    body, content_type = telemetry.render(request.headers.get("accept", ""))
    return Response(body, media_type=content_type)
