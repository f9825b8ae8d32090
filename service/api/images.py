"""`POST /v1/segment`: one picture in, one mask out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio.to_thread
import cv2
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from service.api.bodies import read_picture
from service.api.messages import PROBLEM_MEDIA_TYPE, server_timing
from service.contract.geometry import Image, Mask, crop_mask, restore_mask
from service.contract.masks import MEDIA_TYPES, encode_mask
from service.contract.model_card import ModelCard
from service.frames import SegmentedFrame
from service.overlay import draw_overlay
from service.pipeline.pipeline import Pipeline
from service.settings import Settings
from service.streams.pictures import decode_picture

router = APIRouter()

AnswerFormat = Literal["png", "palette", "rle", "polygons", "overlay"]
AnswerSize = Literal["model", "source"]
_OVERLAY_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 90]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"]}}}
_REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one JPEG or PNG picture, or a form with the part `file`.",
        "content": {"image/jpeg": _BINARY, "image/png": _BINARY, "multipart/form-data": _FORM},
    }
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The mask. `Server-Timing` holds every stage in milliseconds.",
        "content": {"image/png": _BINARY, "application/json": {}, "image/jpeg": _BINARY},
    },
    "4XX": {"description": "A problem document (RFC 9457).", "content": {PROBLEM_MEDIA_TYPE: {}}},
    503: {"description": "Busy, starting or ending.", "content": {PROBLEM_MEDIA_TYPE: {}}},
}


@router.post(
    "/v1/segment",
    tags=["pictures"],
    summary="Segment one picture",
    response_class=Response,
    responses=_ANSWERS,
    openapi_extra=_REQUEST_BODY,
)
async def segment(
    request: Request,
    mask: Annotated[AnswerFormat, Query(description="How the mask is encoded.")] = "png",
    size: Annotated[
        AnswerSize, Query(description="At the model's scale, or at the picture's own.")
    ] = "model",
) -> Response:
    """The mask covers exactly the picture. EXIF orientation is ignored: rows and columns are as stored."""
    pipeline: Pipeline = request.app.state.pipeline
    settings: Settings = request.app.state.settings
    pipeline.check_open()
    with pipeline.images.admit():
        data = await read_picture(request, settings.max_body_bytes, settings.body_timeout_s)
        arrived_at = time.monotonic()
        encode = _choose_encoder(data, mask, size, settings.max_pixels)
        payload, timeline = await anyio.to_thread.run_sync(
            pipeline.images.segment, data, arrived_at, encode, limiter=request.app.state.picture_threads
        )
    media_type = "image/jpeg" if mask == "overlay" else MEDIA_TYPES[mask]
    return Response(payload, media_type=media_type, headers={"Server-Timing": server_timing(timeline)})


def _choose_encoder(
    data: bytes, answer_format: AnswerFormat, size: AnswerSize, max_pixels: int
) -> Callable[[SegmentedFrame], bytes]:
    place = restore_mask if size == "source" else crop_mask

    def encode(segmented: SegmentedFrame) -> bytes:
        fit, card = segmented.frame.fit, segmented.bundle.card
        mask_hw = place(segmented.canvas_mask_hw, fit)
        if answer_format != "overlay":
            return encode_mask(mask_hw, answer_format, card.classes)
        if size == "source":
            # The model was given a reduced picture; the whole one is needed here alone.
            return _encode_overlay(decode_picture(data, max_pixels=max_pixels), mask_hw, card)
        return _encode_overlay(crop_mask(segmented.frame.canvas_hwc, fit), mask_hw, card)

    return encode


def _encode_overlay(image_hwc: Image, mask_hw: Mask, card: ModelCard) -> bytes:
    overlay_hwc = draw_overlay(image_hwc, mask_hw, card.classes)
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(overlay_hwc, cv2.COLOR_RGB2BGR), _OVERLAY_OPTIONS)
    if not done:
        raise ValueError(f"OpenCV could not encode an overlay of shape {overlay_hwc.shape}")
    return encoded.tobytes()
