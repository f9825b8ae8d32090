"""What we say on the wire: answers, events, problem documents, Server-Timing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from service.contract.bundle import Bundle
from service.errors import SurgsegError
from service.frames import Timeline
from service.logs import current_request
from service.pipeline.live_stream import LiveStream
from service.pipeline.subscription import Answer
from service.streams.decoded_video import StreamState
from service.wire import PROTOCOL_VERSION, MaskHeader, describe_error, pack_event, pack_mask

PROBLEM_MEDIA_TYPE = "application/problem+json"
_MAX_REASON_BYTES = 123  # what a WebSocket close frame has room for


def pack_answer(answer: Answer, stream: LiveStream, mask_format: str, skipped: int) -> bytes:
    """The binary message of one mask; `received` and `dropped` are the stream's counts of this instant."""
    frame = answer.segmented.frame
    header = MaskHeader(
        sequence=frame.sequence,
        captured_at_us=frame.captured_at_us,
        pts_s=frame.pts_s,
        width=frame.fit.source_width,
        height=frame.fit.source_height,
        mask=mask_format,
        latency_ms=measure_ms(frame.timeline),
        **give_account(stream, skipped),
        model=answer.segmented.bundle.short_fingerprint,
    )
    return pack_mask(header, answer.payload)


def pack_ready(
    bundle: Bundle, stream: LiveStream, mask_format: str, *, is_recorded: bool, can_move: bool
) -> str:
    """The first event of a stream: who answers, with what classes, at what size, on what terms, recorded or not."""
    return pack_event(
        "ready",
        protocol_version=PROTOCOL_VERSION,
        stream=stream.id,
        **_describe_model(bundle),
        input_size=bundle.card.input_size.model_dump(),
        codec=stream.codec,
        mask=mask_format,
        mode=stream.mode.value,
        recorded=is_recorded,
        shutdown="move" if can_move else "close",
    )


def pack_error(error: SurgsegError, *, is_fatal: bool, sequence: int | None = None) -> str:
    """An `error` event. `fatal`: the stream ends with it; `sequence` names the frame, where there is one."""
    named = {} if sequence is None else {"sequence": sequence}
    return pack_event("error", **describe_error(error), fatal=is_fatal, **named)


def pack_leaving(reason: str, timeout_s: float) -> str:
    """A `leaving` event: the stream should be opened elsewhere, and is served here for `timeout_s` more."""
    return pack_event("leaving", reason=reason, timeout_s=timeout_s)


def pack_closing(reason: str, **account: Any) -> str:
    """The last event before the service closes a stream of its own accord, with `give_account` of it, if it has one."""
    return pack_event("closing", reason=reason, **account)


def give_account(stream: LiveStream, skipped: int) -> dict[str, Any]:
    """What a stream's frames have come to, as every mask's header says it too."""
    return {"received": stream.ledger.received, "dropped": _name_drops(stream), "skipped": skipped}


def pack_notice(state: StreamState, reason: str) -> str:
    """A `notice` event: what the stream is doing now, and why where there is a reason."""
    detail = f"The stream is {state.value}" + (f": {reason}." if reason else ".")
    return pack_event("notice", detail=detail, state=state.value, reason=reason)


def pack_model_change(bundle: Bundle) -> str:
    """A `notice` event: the model of `bundle` makes the masks that follow."""
    card = bundle.card
    return pack_event(
        "notice", detail=f"The model is {card.name} {card.version} from now on.", **_describe_model(bundle)
    )


def measure_ms(timeline: Timeline) -> dict[str, float]:
    """Milliseconds per stage, as the wire names them."""
    return {stage.value: round(seconds * 1000, 3) for stage, seconds in timeline.durations_s().items()}


def server_timing(timeline: Timeline) -> str:
    """The value of a Server-Timing header: every stage and their total, in milliseconds."""
    durations = {**measure_ms(timeline), "total": round(timeline.total_s * 1000, 3)}
    return ", ".join(f"{name};dur={value}" for name, value in durations.items())


def shorten_reason(text: str) -> str:
    """The text, cut to what a WebSocket close frame can carry."""
    return text.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")


def answer_problem(error: SurgsegError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An RFC 9457 problem document."""
    problem: dict[str, Any] = {"type": f"urn:surgseg:problem:{error.slug}", **describe_error(error)}
    if request := current_request():
        problem["instance"] = f"urn:surgseg:request:{request}"  # as the log names it
    return JSONResponse(
        problem, status_code=error.status, media_type=PROBLEM_MEDIA_TYPE, headers=dict(headers or {})
    )


def _name_drops(stream: LiveStream) -> dict[str, int]:
    return {reason.value: count for reason, count in stream.ledger.dropped.items()}


def _describe_model(bundle: Bundle) -> dict[str, Any]:
    card = bundle.card
    return {
        "model": {"name": card.name, "version": card.version, "fingerprint": bundle.fingerprint},
        "classes": [info.model_dump(mode="json") for info in card.classes],
    }
