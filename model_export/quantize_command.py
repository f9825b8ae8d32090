"""surgseg-export quantize: add a graph in int8 or float16 to a bundle, proven against the one in float32.

bfloat16 needs no graph, because runtimes round the one in float32; what it does to the labels is measured all the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.bundle_command import positive
from model_export.bundle_folder import check_target, copy_files, fill_unseen
from model_export.frames import proof_images
from model_export.parity import (
    EQUAL_AT_LEAST,
    Predict,
    backend_predict,
    check_golden,
    measure_agreement,
    require_agreement,
    run_graph,
)
from model_export.pictures import fit_to_card
from model_export.quantize import calibrate, find_sensitive, quantize, round_to_float16
from model_export.runtime_figures import measure_dice
from service.backends import BACKENDS, load_backend, open_backend
from service.backends.base import Backend
from service.contract.bundle import Bundle, hash_file, open_bundle, save_card
from service.contract.geometry import Image
from service.contract.model_card import Model, ModelCard, Parity, Precision
from service.errors import BackendError, InvalidRequestError

REFERENCE = "onnxruntime-cpu"
TRIAL_FRAMES = 16
MOST_FLOAT_NODES = 10
_REMEDY = (
    "Calibrate on more frames, like those that will be served; ask for more equal labels with --at-least, which leaves "
    "layers in float32; or serve this bundle in float32 or bfloat16."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export quantize`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--precision", choices=("int8", "float16", "bfloat16"), default="int8", help="(%(default)s)"
    )
    parser.add_argument(
        "--calibrate",
        metavar="READER:PATH",
        help="frames to measure the ranges of int8 on; labels are not used",
    )
    parser.add_argument(
        "--frames", type=positive, default=64, help="calibrate on at most so many frames (%(default)s)"
    )
    parser.add_argument(
        "--data", metavar="READER:PATH", help="labeled frames to measure Dice on, before and after"
    )
    parser.add_argument(
        "--limit", type=positive, default=64, help="compare labels on at most so many frames (%(default)s)"
    )
    parser.add_argument(
        "--at-least", type=_share, help="the share of equal labels for which layers may stay in float32"
    )
    parser.add_argument(
        "--symmetric",
        action="store_true",
        help="make int8 as TensorRT takes it; processors are slower with it",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write another bundle there (default: add to BUNDLE itself)"
    )
    parser.add_argument("--force", action="store_true", help="replace the bundle that is at DIR")


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle with one more graph, and say how well each runtime keeps to the labels."""
    bundle = open_bundle(arguments.bundle)
    precision: Precision = arguments.precision
    if precision == "int8" and arguments.calibrate is None:
        raise InvalidRequestError(
            "--calibrate is not given.",
            "real frames, like those that will be served; they need no labels",
            "Add --calibrate READER:PATH, for example --calibrate video:recordings.",
        )
    out, replace = arguments.out or bundle.folder, arguments.out is None or arguments.force
    check_target(out, replace)
    with fill_unseen(out, replace) as partial:
        copy_files(bundle, partial)
        card = bundle.card
        if precision != "bfloat16":
            model = _make_graph(bundle, partial / f"model.{precision}.onnx", arguments)
            card = _enter(card, partial, precision, model)
        save_card(card, partial)
        parity = list(_prove(partial, precision, arguments))
        for measured in parity:
            print(describe(measured))
        others = tuple(each for each in card.parity if each.precision != precision)
        save_card(card.model_copy(update={"parity": (*others, *parity)}), partial)
    print(f"{out}: fingerprint {open_bundle(out).fingerprint}")
    return 0


def describe(measured: Parity) -> str:
    """One line for one runtime."""
    line = f"{measured.backend} in {measured.precision}: {measured.labels_equal:.4%} of labels equal"
    line += f" on {measured.frames} frames"
    if measured.dice is None or measured.dice_float32 is None:
        return line
    return (
        f"{line}; Dice {measured.dice:.4f} ({measured.dice - measured.dice_float32:+.4f}) on {measured.data}"
    )


def _make_graph(bundle: Bundle, path: Path, arguments: argparse.Namespace) -> Model:
    """Write the graph; gives its entry in the card."""
    if arguments.precision == "float16":
        largest = round_to_float16(bundle.model_path, path, _proof(bundle, arguments))
        print(f"largest value {largest:.4g} of the 65504 that float16 holds")
        return Model(file=path.name)
    images = _fit(bundle, arguments.calibrate, arguments.frames)
    calibrated = calibrate(bundle.model_path, images, arguments.symmetric)
    wanted = arguments.at_least or EQUAL_AT_LEAST["int8"]
    float_nodes = find_sensitive(calibrated, _make_score(bundle, arguments), wanted, MOST_FLOAT_NODES)
    quantize(calibrated, path, float_nodes)
    reader = arguments.calibrate.partition(":")[0]
    return Model(
        file=path.name, calibration=reader, calibration_frames=calibrated.frames, float_nodes=float_nodes
    )


def _make_score(bundle: Bundle, arguments: argparse.Namespace) -> Callable[[Path], float]:
    """The share of labels that a trial graph has in common with the one in float32, on a few frames."""
    fitted = _fit(bundle, arguments.calibrate, min(TRIAL_FRAMES, arguments.frames))
    trial = [np.ascontiguousarray(image_hwc)[None] for image_hwc in fitted]
    reference = run_graph(bundle.model_path)
    expected = [reference(images_nhwc)[0] for images_nhwc in trial]

    def score(path: Path) -> float:
        predict = run_graph(path)
        pairs = zip(trial, expected, strict=True)
        return float(np.mean([np.mean(predict(images_nhwc)[0] == masks) for images_nhwc, masks in pairs]))

    return score


def _proof(bundle: Bundle, arguments: argparse.Namespace) -> Iterator[Image]:
    return _fit(bundle, arguments.data or arguments.calibrate, arguments.limit)


def _fit(bundle: Bundle, data: str | None, limit: int) -> Iterator[Image]:
    return (fit_to_card(image_hwc, bundle.card) for image_hwc in proof_images(data, limit))


def _enter(card: ModelCard, folder: Path, precision: Precision, model: Model) -> ModelCard:
    return card.model_copy(
        update={
            "models": {**card.models, precision: model},
            "files": {**card.files, model.file: hash_file(folder / model.file)},
        }
    )


def _prove(folder: Path, precision: Precision, arguments: argparse.Namespace) -> Iterator[Parity]:
    """What each runtime of this machine gives. Raises BundleError where that is not the labels of float32."""
    bundle = open_bundle(folder)
    card = bundle.card
    expected = run_graph(bundle.model_path)
    dice_float32 = measure_dice(arguments.data, _first_output(expected), card)
    for name, predict in _list_runtimes(bundle, precision):
        check_golden(bundle, predict, precision, _REMEDY)
        agreement = measure_agreement(expected, predict, _proof(bundle, arguments))
        require_agreement(agreement, name, precision, _REMEDY)
        yield Parity(
            backend=name,
            precision=precision,
            frames=agreement.frames,
            labels_equal=agreement.labels_equal,
            confidences_equal=agreement.confidences_equal,
            data=(arguments.data or "").partition(":")[0],
            dice=measure_dice(arguments.data, _first_output(predict), card),
            dice_float32=dice_float32,
        )


def _first_output(predict: Predict) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    return lambda images_nhwc: predict(images_nhwc)[0]


def _list_runtimes(bundle: Bundle, precision: Precision) -> Iterator[tuple[str, Predict]]:
    """Every backend that runs the bundle at this precision here; ONNX Runtime without one where none does."""
    found = False
    for name in BACKENDS:
        if name == "fake" or not _runs(name, bundle, precision):
            continue
        backend: Backend = open_backend(name, bundle, precision=precision)
        found = True
        yield name, backend_predict(backend, bundle.card)
        backend.close()
    if not found and precision == "bfloat16":
        raise BackendError(
            "No runtime here computes bfloat16.", "a processor with AVX512_BF16 or AMX", "Measure it on one."
        )
    if not found:
        yield REFERENCE, run_graph(bundle.path_of(precision))


def _runs(name: str, bundle: Bundle, precision: Precision) -> bool:
    try:
        factory = load_backend(name)
    except BackendError:
        return False
    return precision in factory.precisions and factory.reason_against(bundle, precision) is None


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return share
