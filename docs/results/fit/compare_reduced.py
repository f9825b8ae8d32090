"""How a JPEG that was decoded at a fraction of its size is best put on the canvas: averaged, or bilinearly.

`python docs/results/fit/compare_reduced.py DATA_FOLDER`. The labeled frames of EndoVis 2015 rigid, enlarged to sizes at
which the fraction is still up to twice as large as the canvas, where the two differ most.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cv2
import numpy as np

from service.backends import open_backend
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import open_bundle
from service.contract.geometry import Fit, crop_canvas, fit_image, fit_mask, plan_fit
from training.data import open_data

SIZES = ((640, 480), (720, 540), (960, 720), (1120, 840), (1180, 885), (1440, 1080), (1800, 1350))
FLAGS = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
WAYS = {"averaged": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR}


def measure_dice(mask_hw: np.ndarray, truth_hw: np.ndarray) -> float:
    """Of two binary masks; 1 where both are empty."""
    together = int(mask_hw.sum()) + int(truth_hw.sum())
    return 1.0 if together == 0 else 2 * int((mask_hw & truth_hw).sum()) / together


def put_on_canvas(image_bgr: np.ndarray, fit: Fit, interpolation: int) -> np.ndarray:
    """A picture of any size as RGB on the canvas."""
    canvas_hwc = np.zeros((fit.canvas_height, fit.canvas_width, 3), np.uint8)
    crop_canvas(canvas_hwc, fit)[...] = cv2.resize(
        image_bgr, (fit.width, fit.height), interpolation=interpolation
    )
    return np.ascontiguousarray(canvas_hwc[..., ::-1])


def main(folder: Path) -> None:
    """Print a row for each size: Dice whole and at a fraction in both ways, and the milliseconds of both."""
    cv2.setNumThreads(1)
    bundle = open_bundle(DEFAULT_BUNDLE)
    backend = open_backend("onnxruntime-cpu", bundle)
    samples = [sample.load() for sample in open_data(f"endovis2015_rigid:{folder / 'endovis2015_rigid'}")]
    for width, height in SIZES:
        fit = plan_fit(height, width, bundle.card.input_size, bundle.card.fit)
        scale = max(each for each in FLAGS if height >= each * fit.height and width >= each * fit.width)
        dices: dict[str, list[float]] = {name: [] for name in ("whole", *WAYS)}
        passed_ms: dict[str, list[float]] = {name: [] for name in WAYS}
        for image_hwc, mask_hw in samples:
            large = cv2.resize(image_hwc[..., ::-1], (width, height), interpolation=cv2.INTER_CUBIC)
            jpeg = cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            truth_hw = fit_mask(
                np.ascontiguousarray(mask_hw), plan_fit(*mask_hw.shape, bundle.card.input_size)
            )
            whole_hwc = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
            canvases = {"whole": fit_image(np.asarray(whole_hwc, np.uint8), fit)}
            reduced = cv2.imdecode(jpeg, FLAGS[scale])
            assert reduced is not None
            for name, interpolation in WAYS.items():
                started_at = time.perf_counter()
                canvases[name] = put_on_canvas(reduced, fit, interpolation)
                passed_ms[name].append(1000 * (time.perf_counter() - started_at))
            for name, canvas_hwc in canvases.items():
                dices[name].append(measure_dice(backend.segment(canvas_hwc[None])[0] > 0, truth_hw > 0))
        ratio = height / scale / fit.height
        cells = [f"{np.mean(values):.4f}" for values in dices.values()]
        times = [f"{np.median(values):.2f}" for values in passed_ms.values()]
        print(f"| {width} x {height} | 1/{scale} | {ratio:.2f} | {' | '.join(cells + times)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
