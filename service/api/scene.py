"""`/v1/scene`: the synthetic scene as a paced stream of JPEG pictures, for the viewer and for load tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import cast

import cv2
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from service.api.messages import pack_closing, pack_error, shorten_reason
from service.api.numbers import read_number
from service.api.sockets import POLICY_VIOLATION, TRY_AGAIN_LATER, accept
from service.errors import InvalidRequestError, SurgsegError, UnavailableError
from service.streams.synthetic import SyntheticScene
from service.streams.synthetic_view import ViewShape
from service.wire import PushedFrame, pack_frame

router = APIRouter()

MAX_SCENES = 4
MAX_WIDTH, MAX_HEIGHT = 1920, 1080
GOING_AWAY = 1001
NUMBERS: dict[str, tuple[float, float]] = {
    "fps": (1.0, 60.0),
    "width": (64, MAX_WIDTH),
    "height": (64, MAX_HEIGHT),
    "seed": (0, 2**32 - 1),
    "start_s": (0.0, 1e6),
    "instruments": (0, 4),
}

_JPEG_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 88]


@dataclass(frozen=True)
class SceneRequest:
    """The query parameters of `/v1/scene`; sizes in pixels, `start_s` in seconds of the scene's own time."""

    fps: float = 25.0
    width: int = 1280
    height: int = 720
    seed: int = 0
    start_s: float = 0.0
    instruments: int | None = None
    view: str = "random"

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> SceneRequest:
        """Raises InvalidRequestError that names the parameter."""
        names = [field.name for field in fields(cls)]
        for name in query:
            if name not in names:
                raise InvalidRequestError(
                    f"There is no parameter '{name}'.", f"some of {', '.join(names)}", "Leave it out."
                )
        numbers = {name: read_number(query, name, *limits) for name, limits in NUMBERS.items()}
        given = {name: value for name, value in numbers.items() if value is not None}
        whole = {name: int(value) for name, value in given.items() if isinstance(NUMBERS[name][0], int)}
        return cls(**(given | whole), view=query.get("view", cls.view))  # type: ignore[arg-type]

    def paint(self) -> SyntheticScene:
        """The scene itself, which takes a while. Raises InvalidRequestError for an unknown view."""
        view = cast(ViewShape, self.view)
        return SyntheticScene(self.width, self.height, self.seed, view=view, instruments=self.instruments)


class _Slots:
    """How many scenes are shown; scenes cost a core each, so the process limits them. Event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken = limit, 0

    def __enter__(self) -> None:
        if self._taken >= self._limit:
            raise UnavailableError(
                f"{self._taken} scenes are shown already.",
                f"at most {self._limit}",
                "Close one and try again.",
            )
        self._taken += 1

    def __exit__(self, *_: object) -> None:
        self._taken -= 1


_slots = _Slots(MAX_SCENES)


@router.websocket("/v1/scene")
async def show_scene(websocket: WebSocket) -> None:
    """Send pictures, 8 bytes of `captured_at_us` and a JPEG each, until the client leaves.

    A wrong parameter or too many scenes give an `error` event and a close code (1008, 1013).
    """
    await accept(websocket)
    try:
        request = SceneRequest.parse(websocket.query_params)
        with _slots:
            await _until_client_leaves(websocket, request)
    except WebSocketDisconnect:
        return
    except SurgsegError as error:
        await _refuse(websocket, error)


async def _refuse(websocket: WebSocket, error: SurgsegError) -> None:
    code = TRY_AGAIN_LATER if isinstance(error, UnavailableError) else POLICY_VIOLATION
    try:
        await websocket.send_text(pack_error(error, is_fatal=True))
        await websocket.close(code, shorten_reason(error.found))
    except (WebSocketDisconnect, RuntimeError):
        return


async def _until_client_leaves(websocket: WebSocket, request: SceneRequest) -> None:
    """Show the scene until the client leaves or the service drains."""
    draining: asyncio.Event = websocket.app.state.draining
    tasks = [
        asyncio.create_task(part) for part in (_show(websocket, request), _listen(websocket), draining.wait())
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    if draining.is_set():
        await websocket.send_text(pack_closing("The service is shutting down."))
        await websocket.close(GOING_AWAY)


async def _listen(websocket: WebSocket) -> None:
    """Return when the client has gone; whatever it says is ignored."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _show(websocket: WebSocket, request: SceneRequest) -> None:
    """Paint, then send on the clock. Pictures that are late already are left out, never sent in a burst."""
    loop = asyncio.get_running_loop()
    # One thread for each scene: it renders one picture at a time, and the event loop only sends.
    painter = ThreadPoolExecutor(1, thread_name_prefix="scene")
    try:
        scene = await loop.run_in_executor(painter, request.paint)
        started_at, started_us = time.monotonic(), time.time_ns() // 1000
        index = 0
        while True:
            elapsed_s = index / request.fps
            picture = await loop.run_in_executor(painter, _encode, scene, request.start_s + elapsed_s)
            await asyncio.sleep(max(0.0, started_at + elapsed_s - time.monotonic()))
            await websocket.send_bytes(pack_frame(PushedFrame(started_us + round(elapsed_s * 1e6), picture)))
            index = max(index + 1, int((time.monotonic() - started_at) * request.fps))
    finally:
        painter.shutdown(wait=False, cancel_futures=True)


def _encode(scene: SyntheticScene, time_s: float) -> bytes:
    image_hwc, _ = scene.render(time_s)
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(image_hwc, cv2.COLOR_RGB2BGR), _JPEG_QUALITY)
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {image_hwc.shape}")
    return encoded.tobytes()
