"""A synthetic surgical scene with exact masks: pictures at any time, a frame source, a folder for training.

`python -m service.streams.synthetic --out DIR --count N` writes pictures and masks in the generic layout.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from service.contract.geometry import Image, Mask
from service.errors import InvalidRequestError, SurgsegError
from service.frames import DecodedFrame
from service.streams.synthetic_instruments import Instrument
from service.streams.synthetic_tissue import TissueCanvas
from service.streams.synthetic_view import VIEW_SHAPES, View, ViewShape

MIN_SIDE, MAX_SIDE = 64, 2160
MAX_INSTRUMENTS = 4

_MARGIN = 0.12
_GRID = 16
_EXPOSURE_S = 0.012
_DESCRIPTION = "Write synthetic surgical pictures and their exact masks, in the generic folder layout."


class SyntheticScene:
    """An endoscope's view of moving instruments over tissue, with exact masks.

    Everything follows from `seed`: the organs with their colours, vessels, blood and highlights; how the
    camera drifts and the tissue breathes; number, kind, material, size, path and speed of the instruments;
    the shape of the view, its light, smoke, softness, noise and captions. `view` and `instruments` fix those
    two instead. Scenes that differ only in `instruments` have the same tissue, camera and view.
    """

    def __init__(
        self,
        width: int = 1280,
        height: int = 720,
        seed: int = 0,
        *,
        view: ViewShape = "random",
        instruments: int | None = None,
    ) -> None:
        """Paint the scene, which takes far longer than rendering it. Raises InvalidRequestError."""
        _check(width, height, seed, view, instruments)
        self.width, self.height, self.seed = width, height, seed
        tissue_rng, view_rng, tool_rng, camera_rng = (
            np.random.default_rng([seed, part]) for part in range(4)
        )
        margin = 1 + 2 * _MARGIN
        self._canvas = TissueCanvas(
            tissue_rng, math.ceil(height * margin), math.ceil(width * margin)
        ).image_hwc
        self._view = View(view_rng, height, width, view)
        count = int(tool_rng.choice(MAX_INSTRUMENTS + 1, p=(0.08, 0.32, 0.36, 0.17, 0.07)))
        count = count if instruments is None else instruments
        self.instruments = tuple(
            Instrument(np.random.default_rng([seed, 4 + index]), self._view.centre, self._view.extent)
            for index in range(count)
        )
        self._sway = camera_rng.uniform(0.2, 1.0, 2) * _MARGIN * 0.35 * np.array((width, height))
        self._zoom, self._roll = float(camera_rng.uniform(0, 0.05)), float(camera_rng.uniform(0, 0.05))
        self._breath = camera_rng.uniform(0.1, 1.0, 2) * 0.012 * min(width, height)
        self._rates, self._phases = camera_rng.uniform(0.1, 0.7, 5), camera_rng.uniform(0, 2 * math.pi, 5)
        self._waves = camera_rng.uniform(1.0, 3.5, 2) * 2 * math.pi
        rows, columns = max(2, height // _GRID), max(2, width // _GRID)
        self._grid_y, self._grid_x = np.mgrid[-0.5 : 0.5 : rows * 1j, -0.5 : 0.5 : columns * 1j]

    def render(self, time_s: float) -> tuple[Image, Mask]:
        """The picture `(H, W, 3)` uint8 RGB at `time_s`, and its mask `(H, W)` uint8, 1 on instruments.

        The same time gives the same bytes. One thread at a time.
        """
        # Nearest pixels cost a fifth of interpolated ones; the lens blurs the picture afterwards.
        map_x, map_y = self._look(time_s)
        image_hwc: Image = np.asarray(
            cv2.remap(self._canvas, map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT), np.uint8
        )
        mask_hw = np.zeros((self.height, self.width), np.uint8)
        for instrument in self.instruments:
            instrument.draw(instrument.pose(time_s), image_hwc, mask_hw)
        before, after = self._gaze(time_s), self._gaze(time_s + _EXPOSURE_S)
        drift = (float(after[0] - before[0]), float(after[1] - before[1]))
        self._view.show(image_hwc, mask_hw, time_s, drift)
        return image_hwc, mask_hw

    def _gaze(self, time_s: float) -> NDArray[np.float64]:
        """Where the camera looks, in pixels from the middle of the canvas."""
        gaze: NDArray[np.float64] = self._sway * np.sin(time_s * self._rates[:2] + self._phases[:2])
        return gaze

    def _look(self, time_s: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For every pixel of the picture its place on the canvas: camera motion, and tissue that breathes."""
        wave = np.sin(time_s * self._rates[2:] + self._phases[2:])
        scale, roll = 1 + self._zoom * float(wave[0]), self._roll * float(wave[1])
        x, y = self._grid_x * (self.width - 1) * scale, self._grid_y * (self.height - 1) * scale
        gaze = self._gaze(time_s)
        middle_y, middle_x = (side / 2 for side in self._canvas.shape[:2])
        breath = time_s * 2 * math.pi * 0.25
        swell_x = self._breath[0] * np.sin(self._grid_y * self._waves[0] + breath)
        swell_y = self._breath[1] * np.sin(self._grid_x * self._waves[1] + breath + float(wave[2]))
        map_x = middle_x + gaze[0] + x * math.cos(roll) - y * math.sin(roll) + swell_x
        map_y = middle_y + gaze[1] + x * math.sin(roll) + y * math.cos(roll) + swell_y
        maps = (cv2.resize(grid.astype(np.float32), (self.width, self.height)) for grid in (map_x, map_y))
        full_x, full_y = (np.asarray(grid, np.float32) for grid in maps)
        return full_x, full_y


def _check(width: int, height: int, seed: int, view: str, instruments: int | None) -> None:
    for name, side in (("width", width), ("height", height)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise InvalidRequestError(
                f"The scene's {name} is {side} pixels.",
                f"{MIN_SIDE} to {MAX_SIDE}",
                f"Choose another {name}.",
            )
    if seed < 0:
        raise InvalidRequestError(
            f"The scene's seed is {seed}.", "a whole number from 0", "Choose another seed."
        )
    if view not in VIEW_SHAPES:
        raise InvalidRequestError(
            f"There is no view '{view}'.", f"one of {', '.join(VIEW_SHAPES)}", "Choose one."
        )
    if instruments is not None and not 0 <= instruments <= MAX_INSTRUMENTS:
        raise InvalidRequestError(
            f"The scene was asked for {instruments} instruments.", f"0 to {MAX_INSTRUMENTS}", "Ask for fewer."
        )


class SyntheticSource:
    """A FrameSource over a scene: `fps` pictures a second of scene time, without waiting between them.

    `close` may be called from any thread and ends `frames` before its next picture.
    """

    def __init__(self, scene: SyntheticScene, fps: float, duration_s: float | None = None) -> None:
        """`duration_s` None never ends. Raises InvalidRequestError."""
        if not 0 < fps <= 1000:
            raise InvalidRequestError(
                f"The source's rate is {fps} fps.", "more than 0, at most 1000", "Choose another."
            )
        self._scene, self._fps, self._duration_s = scene, fps, duration_s
        self._closed = threading.Event()

    def frames(self) -> Iterator[DecodedFrame]:
        """Pictures in order, each with its scene time as `pts_s`."""
        index = 0
        while not self._closed.is_set() and (
            self._duration_s is None or index / self._fps < self._duration_s
        ):
            pts_s = index / self._fps
            yield DecodedFrame(image_hwc=self._scene.render(pts_s)[0], pts_s=pts_s)
            index += 1

    def close(self) -> None:
        """End `frames`."""
        self._closed.set()


def write_pictures(out: Path, count: int, width: int, height: int, seed: int) -> None:
    """Write `count` pictures, each of a new scene, and their masks (0 and 255).

    They go to `out/train/image` as JPEG of quality 60 to 97, and to `out/train/mask` as PNG. Raises
    InvalidRequestError, OSError.
    """
    _check(width, height, seed, "random", None)
    folders = [out / "train" / kind for kind in ("image", "mask")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(count), desc="synthetic pictures", unit="picture"):
        rng = np.random.default_rng([seed, index, 1])
        image_hwc, mask_hw = SyntheticScene(width, height, seed * 1_000_003 + index).render(
            float(rng.uniform(0, 60))
        )
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 98))]
        _write(folders[0] / f"{index:06d}.jpg", image_hwc[:, :, ::-1], quality)
        _write(folders[1] / f"{index:06d}.png", mask_hw * np.uint8(255), [])


def _write(path: Path, picture: Image, options: list[int]) -> None:
    done, encoded = cv2.imencode(path.suffix, picture, options)
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {picture.shape} for {path.name}")
    path.write_bytes(encoded.tobytes())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m service.streams.synthetic", description=_DESCRIPTION)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=100, help="number of pictures")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    try:
        write_pictures(chosen.out, chosen.count, chosen.width, chosen.height, chosen.seed)
    except (SurgsegError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
