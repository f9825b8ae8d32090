"""WebSockets `/v1/stream`, pictures in, masks out, and `/v1/streams/{id}/masks`, masks of a pulled stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from service.api.messages import answer_problem, pack_error, shorten_reason
from service.api.numbers import read_number
from service.api.stream_session import StreamSession
from service.api.viewer_session import ViewerSession
from service.contract.masks import MASK_FORMATS, MaskFormat
from service.errors import (
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    SurgsegError,
    UnavailableError,
    shorten,
)
from service.pipeline.latest_frames import Mode
from service.pipeline.pipeline import Pipeline
from service.pipeline.pulled_stream import PulledStream
from service.pipeline.stream_terms import StreamTerms
from service.wire import CODECS, MODES, SHUTDOWNS

router = APIRouter()
unknown = APIRouter()  # to be included after all others

NUMBERS: dict[str, tuple[float, float]] = {
    "deadline_ms": (1, 60_000),
    "priority": (0, 9),
    "fps": (0.1, 1000.0),
    "width": (1, 65_535),
    "height": (1, 65_535),
}
_PARAMETERS = ("codec", "mask", "mode", "shutdown", *NUMBERS)
SUBPROTOCOL = "surgseg.v1"
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """The query of `/v1/stream`."""

    codec: str
    mask_format: MaskFormat
    terms: StreamTerms
    can_move: bool

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> StreamOptions:
        """Raises InvalidRequestError that lists what is supported."""
        _check_names(query, _PARAMETERS)
        codec = _choose(query, "codec", "jpeg", CODECS)
        mask_format = _choose(query, "mask", "png", MASK_FORMATS)
        mode = _choose(query, "mode", "latest", MODES)
        shutdown = _choose(query, "shutdown", "close", SHUTDOWNS)
        numbers = {name: read_number(query, name, *limits) for name, limits in NUMBERS.items()}
        deadline_ms, width, height = numbers["deadline_ms"], numbers["width"], numbers["height"]
        terms = StreamTerms(
            Mode(mode),
            deadline_s=None if deadline_ms is None else deadline_ms / 1000,
            priority=int(numbers["priority"] or 0),
            fps=numbers["fps"],
            width=None if width is None else int(width),
            height=None if height is None else int(height),
        )
        return cls(codec, cast(MaskFormat, mask_format), terms, shutdown == "move")


async def accept(websocket: WebSocket) -> None:
    """Accept, with our sub-protocol where it was offered: a browser insists on one of those that it offers."""
    offered = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)


@router.websocket("/v1/stream")
async def stream(websocket: WebSocket) -> None:
    """Accept first, and refuse inside: a browser shows a script no other reason than a close frame's.

    Who can move is a program, which reads HTTP. Where the whole service is closed it is refused before: a balancer
    then asks another replica at once, and would send it here again and again otherwise.
    """
    pipeline: Pipeline = websocket.app.state.pipeline
    if websocket.query_params.get("shutdown") == "move" and (refusal := _find_refusal(pipeline)):
        await websocket.send_denial_response(answer_problem(refusal))
        return
    await accept(websocket)
    try:
        options = StreamOptions.parse(websocket.query_params)
        session = StreamSession(
            websocket,
            pipeline,
            codec=options.codec,
            mask_format=options.mask_format,
            terms=options.terms,
            can_move=options.can_move,
        )
    except SurgsegError as error:
        await _refuse(websocket, error)
        return
    await session.run()


@router.websocket("/v1/streams/{stream_id}/masks")
async def watch(websocket: WebSocket, stream_id: str) -> None:
    """Masks of a stream that `POST /v1/streams` has opened; accepted and refused as above."""
    await accept(websocket)
    pipeline: Pipeline = websocket.app.state.pipeline
    try:
        _check_names(websocket.query_params, ("mask",))
        mask_format = cast(MaskFormat, _choose(websocket.query_params, "mask", "png", MASK_FORMATS))
        found = pipeline.find_stream(stream_id)
        if not isinstance(found, PulledStream):
            raise NotFoundError(
                f"Stream {stream_id!r} is pushed, and its masks go to who pushes it.",
                "the id of a stream that POST /v1/streams has opened",
                "See GET /v1/streams.",
            )
        session = ViewerSession(websocket, pipeline, found, mask_format)
    except SurgsegError as error:
        await _refuse(websocket, error)
        return
    await session.run()


@unknown.websocket("/{path:path}")
async def refuse_unknown(websocket: WebSocket, path: str) -> None:
    """No WebSocket is here: said in the answer to the handshake, as HTTP says it."""
    error = NotFoundError(
        f"There is no WebSocket at {shorten(websocket.url.path)!r}.",
        "an address of this service",
        "See /docs.",
    )
    await websocket.send_denial_response(answer_problem(error))


def _find_refusal(pipeline: Pipeline) -> UnavailableError | None:
    try:
        pipeline.check_open()
    except UnavailableError as error:
        return error
    return None


async def _refuse(websocket: WebSocket, error: SurgsegError) -> None:
    code = INTERNAL_ERROR
    if isinstance(error, InvalidRequestError | NotFoundError):
        code = POLICY_VIOLATION
    elif isinstance(error, UnavailableError | OverloadedError):
        code = TRY_AGAIN_LATER
    try:
        await websocket.send_text(pack_error(error, is_fatal=True))
        await websocket.close(code, shorten_reason(error.found))
    except WebSocketDisconnect:
        pass  # it did not wait for the answer


def _check_names(query: Mapping[str, str], allowed: tuple[str, ...]) -> None:
    for name in query:
        if name not in allowed:
            raise InvalidRequestError(
                f"There is no parameter {name!r}.", f"some of {', '.join(allowed)}", "Leave it out."
            )


def _choose(query: Mapping[str, str], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = query.get(name, default)
    if value not in allowed:
        raise InvalidRequestError(
            f"The {name} is {value!r}.",
            f"one of {', '.join(allowed)}",
            f"Open the stream with ?{name}={default}.",
        )
    return value
