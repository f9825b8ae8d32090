"""surgseg-export build: make the engine of a bundle on the machine that will run it, and prove it before it is kept.

It needs what the service needs, and no torch: it runs where the service runs.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from model_export.parity import backend_predict, measure_agreement, require_agreement
from model_export.pictures import draw_pictures, fit_to_card
from service.backends import load_backend, open_backend
from service.backends.engine_cache import (
    BatchParity,
    EngineRecord,
    Machine,
    StoredEngine,
    default_engines_folder,
    find_engine,
    store_engine,
    timing_cache_path,
)
from service.backends.tensorrt_graphs import reason_against_types
from service.contract.bundle import Bundle, open_bundle
from service.contract.geometry import Image
from service.contract.model_card import InputSize, Precision
from service.errors import BackendError, InvalidRequestError

RUNTIME = "tensorrt"
REFERENCE = "onnxruntime-cpu"
PRECISIONS: tuple[Precision, ...] = ("int8", "float16", "float32")
_DRAWN_SIZE = InputSize(height=480, width=640)
_FEWEST_FRAMES = 8
_LIMIT_BATCH = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export build`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--runtime", choices=[RUNTIME], required=True, help="what to build for")
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="which graph (the first of int8, float16, float32 there is)"
    )
    parser.add_argument(
        "--batch-sizes", default="1,2,4,8,16", metavar="N,N", help="pictures a call (%(default)s)"
    )
    parser.add_argument(
        "--engines", type=Path, metavar="DIR", help="folder of engines (surgseg/engines in the user's cache)"
    )
    parser.add_argument(
        "--workspace-mib", type=int, metavar="N", help="memory that one layer may use (all of the GPU's)"
    )
    parser.add_argument("--force", action="store_true", help="build it even if there is one")


def run(arguments: argparse.Namespace) -> int:
    """Build the engine unless there is one, prove it, keep it. Raises SurgsegError."""
    bundle = open_bundle(arguments.bundle)
    batch_sizes = _read_batch_sizes(arguments.batch_sizes)
    if arguments.workspace_mib is not None and arguments.workspace_mib < 1:
        raise InvalidRequestError(
            f"--workspace-mib is {arguments.workspace_mib}.", "at least 1", "Change the option."
        )
    precision = _choose_precision(bundle, arguments.precision)
    machine = _find_machine()
    folder = arguments.engines or default_engines_folder()
    if not arguments.force:
        with suppress(BackendError):
            found = find_engine(folder, bundle, precision, machine, batch_sizes)
            if found.record.batch_sizes == batch_sizes and found.read():
                print(f"{found.path}: there already; --force builds it again")
                return 0
    stored = _build(bundle, precision, batch_sizes, machine, folder, arguments.workspace_mib)
    for parity in stored.record.parity:
        print(
            f"batch {parity.batch_size}: {parity.labels_equal:.4%} of labels equal on {parity.frames} frames"
        )
    print(f"{stored.path}: {stored.record.size_bytes / 1e6:.1f} MB for {machine}")
    return 0


def _build(
    bundle: Bundle,
    precision: Precision,
    batch_sizes: tuple[int, ...],
    machine: Machine,
    folder: Path,
    workspace_mib: int | None,
) -> StoredEngine:
    """The engine, once it has given the network's labels. Until then it lies apart, where no service finds it."""
    from model_export.to_tensorrt import BuildPlan, build_engine
    from service.backends.cuda_device import describe_gpu

    timing_cache = timing_cache_path(folder, machine)
    plan = BuildPlan(
        bundle.path_of(precision), bundle.card.input_size, batch_sizes, timing_cache, workspace_mib
    )
    data = build_engine(plan)
    gpu = describe_gpu()
    record = EngineRecord(
        model_hash=bundle.hash_of(precision),
        precision=precision,
        compute_capability=machine.compute_capability,
        tensorrt=machine.tensorrt,
        batch_sizes=batch_sizes,
        gpu=gpu.name,
        driver_cuda=gpu.driver_cuda,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".candidate-", dir=folder) as candidate:
        store_engine(Path(candidate), record, data)
        parity = tuple(prove(bundle, RUNTIME, precision, batch_sizes, Path(candidate)))
    return store_engine(folder, record.model_copy(update={"parity": parity}), data)


def prove(
    bundle: Bundle, name: str, precision: Precision, batch_sizes: tuple[int, ...], engines: Path
) -> Iterator[BatchParity]:
    """How far a backend gives the network's labels at each batch size. Raises BundleError where it does too seldom."""
    with (
        closing(open_backend(REFERENCE, bundle, batch_sizes=batch_sizes, precision="float32")) as reference,
        closing(
            open_backend(name, bundle, batch_sizes=batch_sizes, precision=precision, engines=engines)
        ) as candidate,
    ):
        for size in tqdm(batch_sizes, desc="proof", unit="batch size", disable=None):
            count = -(-_FEWEST_FRAMES // size) * size
            agreement = measure_agreement(
                backend_predict(reference, bundle.card),
                backend_predict(candidate, bundle.card),
                _proof_images(bundle, count),
                batch_size=size,
            )
            require_agreement(agreement, name, precision)
            yield BatchParity(
                batch_size=size,
                frames=agreement.frames,
                labels_equal=agreement.labels_equal,
                confidences_equal=agreement.confidences_equal,
            )


def _proof_images(bundle: Bundle, count: int) -> Iterator[Image]:
    """The golden picture and drawn ones, `count` in all, at the model's size."""
    drawn = (fit_to_card(image_hwc, bundle.card) for image_hwc in draw_pictures(_DRAWN_SIZE, count - 1))
    return chain([bundle.golden_image_hwc], drawn)


def _find_machine() -> Machine:
    """What the engine will be tied to. Raises BackendError where there is no TensorRT, or no GPU."""
    load_backend(RUNTIME)
    from service.backends.cuda_device import reason_against_gpu
    from service.backends.tensorrt import describe_machine

    if reason := reason_against_gpu():
        raise BackendError(
            f"An engine cannot be built here: {reason}.",
            "the machine that will run it",
            "Run this command where the service runs.",
        )
    return describe_machine()


def _choose_precision(bundle: Bundle, asked: Precision | None) -> Precision:
    if asked is None:
        return next(each for each in PRECISIONS if reason_against_types(bundle, each) is None)
    if reason := reason_against_types(bundle, asked):
        raise BackendError(
            f"There is nothing to build: {reason}.",
            " or ".join(bundle.card.models),
            "Choose another --precision, or make the graph first.",
        )
    return asked


def _read_batch_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not 0 < sizes[0] <= sizes[-1] <= _LIMIT_BATCH:
        raise InvalidRequestError(
            f"--batch-sizes is {text!r}.", f"numbers from 1 to {_LIMIT_BATCH}, as 1,2,4", "Change the option."
        )
    return tuple(sizes)
