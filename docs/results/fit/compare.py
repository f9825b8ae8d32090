"""Two ways of fitting a frame to the model, side by side: `python docs/results/fit/compare.py DATA_FOLDER`.

Training and posted pictures are made RGB at full size and then averaged (`to_rgb`, `fit_image`); a decoder process
averages the planes of the video itself (`fit_frame`). Both are shown to the default bundle, and both masks are held
against the hand-made ones of EndoVis 2015.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from service.backends import open_backend
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import open_bundle
from service.contract.geometry import crop_canvas, fit_image, fit_mask, plan_fit
from service.contract.video import fit_frame, to_rgb
from training.data import open_data

EVERY = 5


def rigid(folder: Path) -> Iterator[tuple[str, VideoFrame, np.ndarray]]:
    """The 160 frames as a camera's 4:2:0 video would carry them."""
    for sample in open_data(f"endovis2015_rigid:{folder / 'endovis2015_rigid'}"):
        image_hwc, mask_hw = sample.load()
        yield (
            f"rigid {sample.video}",
            VideoFrame.from_ndarray(image_hwc, "rgb24").reformat(format="yuv420p"),
            mask_hw,
        )


def robotic(folder: Path) -> Iterator[tuple[str, VideoFrame, np.ndarray]]:
    """Every fifth frame of the three videos, as decoded."""
    samples = {s.sample_id: s for s in open_data(f"endovis2015_robotic:{folder / 'endovis2015_robotic'}")}
    for path in sorted((folder / "endovis2015_robotic").glob("Dataset*/Video.avi")):
        with av.open(str(path)) as container:
            for index, frame in islice(enumerate(container.decode(video=0)), 0, None, EVERY):
                name = f"{path.parent.name}/{index:05d}"
                if name in samples:
                    yield f"robotic {path.parent.name}", frame, samples[name].load()[1]


def measure_dice(mask_hw: np.ndarray, truth_hw: np.ndarray) -> float:
    """Of two binary masks; 1 where both are empty."""
    together = int(mask_hw.sum()) + int(truth_hw.sum())
    return 1.0 if together == 0 else 2 * int((mask_hw & truth_hw).sum()) / together


def main(folder: Path) -> None:
    """Print a row for each video: Dice both ways, and how far pixels and labels differ."""
    bundle = open_bundle(DEFAULT_BUNDLE)
    card, backend, reformatter = bundle.card, open_backend("auto", bundle), VideoReformatter()
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for video, frame, truth_hw in (*rigid(folder), *robotic(folder)):
        fit = plan_fit(frame.height, frame.width, card.input_size, card.fit)
        canvases_nhwc = np.empty((2, fit.canvas_height, fit.canvas_width, 3), np.uint8)
        fit_image(to_rgb(frame), fit, canvases_nhwc[0])
        fit_frame(frame, card.input_size, card.fit, canvases_nhwc[1], reformatter)
        masks = [crop_canvas(backend.segment(canvas[None])[0], fit) for canvas in canvases_nhwc]
        truth_hw = crop_canvas(fit_mask(truth_hw, fit), fit)
        pixels = [crop_canvas(canvas, fit).astype(np.int16) for canvas in canvases_nhwc]
        rows.setdefault(video, []).append(
            (
                *(measure_dice(mask, truth_hw) for mask in masks),
                float(np.abs(pixels[0] - pixels[1]).mean()),
                float((masks[0] != masks[1]).mean()) * 100,
            )
        )
    print(
        "| video | frames | RGB averaged | planes averaged | difference | grey levels apart | labels apart |"
    )
    print("|---|---|---|---|---|---|---|")
    everything = [row for video in rows.values() for row in video]
    for video, values in {**rows, "all": everything}.items():
        whole, planes, levels, labels = np.mean(values, axis=0)
        dice = f"{whole:.4f} | {planes:.4f} | {planes - whole:+.4f}"
        print(f"| {video} | {len(values)} | {dice} | {levels:.2f} | {labels:.2f} % |")
    gaps = np.array([row[1] - row[0] for row in everything])
    print(
        f"\nDifference of a frame's Dice: standard deviation {gaps.std():.4f}, largest {np.abs(gaps).max():.4f}."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
