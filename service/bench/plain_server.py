"""What one would write in an afternoon: FastAPI, a thread pool, ONNX Runtime. The measure for `POST /v1/segment`.

It runs the same network at the same size on the same geometry and answers with the same mask as PNG, by the shortest
way that is still right, with uvloop and httptools. It has no streams, no limits, no metrics and no checks.
`python -m service.bench.plain_server BUNDLE WORKERS INFERENCE_THREADS`; 0 threads leaves the choice to ONNX Runtime.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response

from service.contract.geometry import crop_mask, fit_image, plan_fit
from service.contract.model_card import CARD_NAME, ModelCard


class PlainModel:
    """A network behind a pool of `workers` threads that share one session."""

    def __init__(self, bundle: Path, workers: int, inference_threads: int) -> None:
        self._card = ModelCard.load(bundle / CARD_NAME)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = inference_threads
        self._session = onnxruntime.InferenceSession(
            str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._pool = ThreadPoolExecutor(workers)

    async def segment(self, data: bytes) -> bytes:
        """A JPEG's mask as PNG at the model's scale."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._segment, data)

    def _segment(self, data: bytes) -> bytes:
        image_hwc = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert image_hwc is not None
        fit = plan_fit(image_hwc.shape[0], image_hwc.shape[1], self._card.input_size, self._card.fit)
        canvas_hwc = fit_image(np.asarray(image_hwc, np.uint8), fit)
        mask_hw = self._session.run(["mask"], {"image": canvas_hwc[None]})[0][0]
        _, encoded = cv2.imencode(".png", crop_mask(mask_hw, fit))
        return encoded.tobytes()


def create_app(model: PlainModel, announce: str) -> FastAPI:
    """One route, `POST /segment`: the picture's bytes in, the mask's PNG out. `announce` is printed when it is up."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        print(announce, flush=True)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/segment")
    async def segment(request: Request) -> Response:
        return Response(await model.segment(await request.body()), media_type="image/png")

    return app


def main(arguments: list[str]) -> None:
    """Serve on a free port until the process is ended."""
    model = PlainModel(Path(arguments[0]), int(arguments[1]), int(arguments[2]))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        announce = f"The plain endpoint is ready at http://127.0.0.1:{listener.getsockname()[1]}/"
        app = create_app(model, announce)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1:])
