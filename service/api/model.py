"""The model that is served: its card, what runs it, and how another one takes its place."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from service.api.bodies import read_order
from service.api.messages import PROBLEM_MEDIA_TYPE
from service.bundles import find_bundle
from service.contract.bundle import Bundle
from service.contract.model_card import ModelCard, Precision
from service.pipeline.pipeline import Pipeline
from service.pipeline.succession import Step, Succession
from service.settings import Settings

router = APIRouter()


class Running(BaseModel):
    """What computes the masks: `sha256` is that of the graph that runs, `fingerprint` that of the bundle's card."""

    backend: str
    precision: Precision
    runtime_version: str
    batch_sizes: tuple[int, ...]
    sha256: str
    fingerprint: str


class BundleName(BaseModel):
    """Which bundle, without its card."""

    name: str
    version: str
    fingerprint: str


class ServedModel(ModelCard):
    """The card of the bundle, and what runs it; `running` is null until the service is ready.

    `previous` is the bundle that a roll-back would bring back. `swapping` is how far a change of the model has come:
    checking, rehearsing (in a process of its own), opening or switching; null while there is none.
    """

    running: Running | None
    previous: BundleName | None
    swapping: Step | None


class ModelOrder(BaseModel):
    """Which bundle is to serve."""

    model_config = ConfigDict(extra="forbid")

    bundle: str = Field(min_length=1, max_length=255, description="its path in the folder SURGSEG_BUNDLES")


_PROBLEM: dict[str, Any] = {
    "description": "A problem document (RFC 9457); the model that was served before serves on.",
    "content": {PROBLEM_MEDIA_TYPE: {}},
}
_ANSWERS: dict[int | str, dict[str, Any]] = {"4XX": _PROBLEM, 503: _PROBLEM}
_ORDER_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ModelOrder.model_json_schema()}},
    }
}


@router.get("/v1/model", tags=["model"], summary="The card of the model that is served, and what runs it")
async def get_model(request: Request) -> ServedModel:
    pipeline: Pipeline = request.app.state.pipeline
    return _describe(pipeline.models)


@router.post(
    "/v1/model",
    tags=["model"],
    summary="Have another model serve",
    responses=_ANSWERS,
    openapi_extra=_ORDER_BODY,
)
async def swap_model(request: Request) -> ServedModel:
    """Answers when it serves, or with the reason why the one before goes on. Streams are not interrupted."""
    pipeline: Pipeline = request.app.state.pipeline
    settings: Settings = request.app.state.settings
    pipeline.check_open()
    order = await read_order(request, ModelOrder, {"bundle": "default-0.3.0"}, settings.body_timeout_s)
    folder = await asyncio.to_thread(find_bundle, settings.bundles, order.bundle)
    await asyncio.to_thread(pipeline.models.swap, folder)
    return _describe(pipeline.models)


@router.post(
    "/v1/model/rollback",
    tags=["model"],
    summary="Have the model serve that served before",
    responses=_ANSWERS,
)
async def roll_back_model(request: Request) -> ServedModel:
    """As a change to the bundle before; once more brings back the one that was rolled back."""
    pipeline: Pipeline = request.app.state.pipeline
    pipeline.check_open()
    await asyncio.to_thread(pipeline.models.roll_back)
    return _describe(pipeline.models)


def _describe(models: Succession) -> ServedModel:
    served = models.current
    bundle, backend = served.bundle, served.backend
    running = backend and Running(
        backend=backend.name,
        precision=backend.precision,
        runtime_version=backend.version,
        batch_sizes=backend.batch_sizes,
        sha256=bundle.hash_of(backend.precision),
        fingerprint=bundle.fingerprint,
    )
    previous = models.previous and _name(models.previous)
    return ServedModel(**dict(bundle.card), running=running, previous=previous, swapping=models.step)


def _name(bundle: Bundle) -> BundleName:
    card = bundle.card
    return BundleName(name=card.name, version=card.version, fingerprint=bundle.fingerprint)
