"""The streams that are open."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel

from service.pipeline.live_stream import PushedStream
from service.pipeline.pipeline import Pipeline

router = APIRouter()


class StreamInfo(BaseModel):
    """An open stream and its accounts since it began; `label` is its `stream` label in the metrics.

    `state` is starting, running, stalled or restarting, and `reason` says why where there is a reason.
    """

    id: str
    label: str
    source: str
    codec: str
    mode: str
    state: str
    reason: str
    received: int
    segmented: int
    dropped: dict[str, int]


@router.get("/v1/streams", tags=["streams"], summary="The open streams")
async def list_streams(request: Request) -> list[StreamInfo]:
    pipeline: Pipeline = request.app.state.pipeline
    return [_describe(stream) for stream in pipeline.streams()]


def _describe(stream: PushedStream) -> StreamInfo:
    return StreamInfo(
        id=stream.id,
        label=stream.label,
        source="pushed",
        codec=stream.codec,
        mode=stream.mode.value,
        state=stream.state[0],
        reason=stream.state[1],
        received=stream.ledger.received,
        segmented=stream.ledger.segmented,
        dropped={reason.value: count for reason, count in stream.ledger.dropped.items()},
    )
