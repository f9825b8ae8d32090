"""The streams that are open, and those that the service is asked to fetch itself."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.bodies import read_order
from service.api.messages import PROBLEM_MEDIA_TYPE
from service.errors import InvalidRequestError
from service.pipeline.latest_frames import Mode
from service.pipeline.live_stream import LiveStream
from service.pipeline.pipeline import Pipeline
from service.pipeline.pulled_stream import PulledStream
from service.pipeline.stream_terms import StreamTerms
from service.settings import Settings
from service.streams.pull_targets import PullRules

router = APIRouter()


class StreamOrder(BaseModel):
    """What to fetch. `loop` plays a file over and over; `mode` every and `loop` are for files only."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="rtsp://HOST/PATH, udp://ADDRESS:PORT (MPEG-TS), or file:NAME in the folder")
    mode: Literal["latest", "every"] = "latest"
    transport: Literal["tcp", "udp"] = Field("tcp", description="how RTSP brings its packets")
    loop: bool = False
    name: str = Field("", max_length=100, description="for people")
    deadline_ms: int | None = Field(
        None, ge=1, le=60_000, description="from a frame's arrival to its mask sent"
    )
    priority: int = Field(0, ge=0, le=9, description="streams of higher priority go first")
    fps: float | None = Field(None, ge=0.1, le=1000, description="what the stream will have, if known")
    width: int | None = Field(None, ge=1, le=65_535)
    height: int | None = Field(None, ge=1, le=65_535)

    def read_terms(self) -> StreamTerms:
        """The order as the pipeline takes it."""
        return StreamTerms(
            Mode(self.mode),
            deadline_s=None if self.deadline_ms is None else self.deadline_ms / 1000,
            priority=self.priority,
            fps=self.fps,
            width=self.width,
            height=self.height,
        )


class StreamInfo(BaseModel):
    """An open stream and its accounts since it began; `label` is its `stream` label in the metrics.

    `source` is `pushed`, or the address that it is fetched from, without secrets. `state` is starting, running,
    stalled, restarting, ended or failed, and `reason` says why where there is a reason. `width` and `height` are
    those of the last picture at its source, `fps` counts masks over the last two seconds.
    """

    id: str
    label: str
    name: str
    source: str
    codec: str
    mode: str
    state: str
    reason: str
    viewers: int
    width: int | None
    height: int | None
    fps: float
    received: int
    segmented: int
    dropped: dict[str, int]


_PROBLEM: dict[str, Any] = {
    "description": "A problem document (RFC 9457).",
    "content": {PROBLEM_MEDIA_TYPE: {}},
}
_ANSWERS: dict[int | str, dict[str, Any]] = {"4XX": _PROBLEM, 503: _PROBLEM}
_ORDER_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": StreamOrder.model_json_schema()}},
    }
}


@router.get("/v1/streams", tags=["streams"], summary="The open streams")
async def list_streams(request: Request) -> list[StreamInfo]:
    pipeline: Pipeline = request.app.state.pipeline
    return [_describe(stream) for stream in pipeline.streams()]


@router.post(
    "/v1/streams",
    tags=["streams"],
    summary="Fetch a stream",
    status_code=201,
    responses=_ANSWERS,
    openapi_extra=_ORDER_BODY,
)
async def open_stream(request: Request, response: Response) -> StreamInfo:
    """Its masks are at the WebSocket /v1/streams/{id}/masks. The answer does not wait for the source to be there."""
    pipeline: Pipeline = request.app.state.pipeline
    settings: Settings = request.app.state.settings
    pipeline.check_open()
    order = await read_order(request, StreamOrder, {"url": "rtsp://camera/1"}, settings.body_timeout_s)
    rules = PullRules(settings.pull_schemes, settings.pull_hosts, settings.files)
    target = await asyncio.to_thread(rules.admit, order.url, order.transport)
    if not target.is_file and (order.loop or order.mode != "latest"):
        raise InvalidRequestError(
            "mode every and loop are asked for on a live source.",
            "a file: a live source cannot be held back, and has no beginning to go back to",
            "Leave them out.",
        )
    stream = await asyncio.to_thread(
        pipeline.open_pulled, target, order.read_terms(), name=order.name, is_looped=order.loop
    )
    response.headers["Location"] = f"/v1/streams/{stream.id}"
    return _describe(stream)


@router.get("/v1/streams/{stream_id}", tags=["streams"], summary="One open stream", responses={404: _PROBLEM})
async def get_stream(request: Request, stream_id: str) -> StreamInfo:
    pipeline: Pipeline = request.app.state.pipeline
    return _describe(pipeline.find_stream(stream_id))


@router.delete(
    "/v1/streams/{stream_id}",
    tags=["streams"],
    summary="Close a fetched stream",
    status_code=204,
    responses=_ANSWERS,
)
async def close_stream(request: Request, stream_id: str) -> None:
    """Its viewers are told; its process is gone when this answers."""
    pipeline: Pipeline = request.app.state.pipeline
    stream = pipeline.find_stream(stream_id)
    if not isinstance(stream, PulledStream):
        raise InvalidRequestError(
            f"Stream {stream_id} is pushed.",
            "a stream that POST /v1/streams has opened",
            "It ends with its connection.",
        )
    await asyncio.to_thread(stream.close)


def _describe(stream: LiveStream) -> StreamInfo:
    state, reason = stream.state
    width, height = stream.picture_size or (None, None)
    return StreamInfo(
        id=stream.id,
        label=stream.label,
        name=stream.name,
        source=stream.origin,
        codec=stream.codec,
        mode=stream.mode.value,
        state=state,
        reason=reason,
        viewers=stream.viewers,
        width=width,
        height=height,
        fps=stream.ledger.fps,
        received=stream.ledger.received,
        segmented=stream.ledger.segmented,
        dropped={reason.value: count for reason, count in stream.ledger.dropped.items()},
    )
