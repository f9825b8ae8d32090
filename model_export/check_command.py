"""surgseg-export check: prove that a bundle is whole and gives the labels it should."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from model_export.bundle_command import add_precision, positive
from model_export.frames import proof_images
from model_export.parity import (
    backend_predict,
    check_golden,
    measure_agreement,
    require_agreement,
)
from model_export.pictures import fit_to_card
from model_export.reference import reference_predict
from model_export.to_onnx import WRITTEN_LATER, embedded_card
from service.backends import open_backend
from service.backends.base import Backend
from service.contract.bundle import Bundle, open_bundle
from service.contract.geometry import Image
from service.contract.model_card import Precision
from service.errors import BundleError, InvalidRequestError
from training.checkpoint import Checkpoint, load_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export check`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--backend", default="auto", help="the service's backend to check with (%(default)s)")
    add_precision(parser)
    parser.add_argument(
        "--checkpoint", type=Path, help="compare with the labels of this checkpoint's network"
    )
    parser.add_argument(
        "--data", metavar="READER:PATH", help="compare on these frames; drawn pictures otherwise"
    )
    parser.add_argument(
        "--limit", type=positive, default=64, help="compare on at most so many frames (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each proof. Gives 1, with one line on standard error, at the first that fails."""
    if arguments.data is not None and arguments.checkpoint is None:
        raise InvalidRequestError(
            "--data is given without --checkpoint.",
            "a checkpoint to compare with",
            "Add --checkpoint CHECKPOINT.",
        )
    checkpoint = None if arguments.checkpoint is None else load_checkpoint(arguments.checkpoint)
    images = proof_images(arguments.data, arguments.limit)
    try:
        for line in check(arguments.bundle, arguments.backend, arguments.precision, checkpoint, images):
            print(line)
    except BundleError as error:
        print(f"surgseg-export: {error}", file=sys.stderr)
        return 1
    return 0


def check(
    folder: Path,
    backend_name: str,
    precision: Precision | None,
    checkpoint: Checkpoint | None,
    images: Iterable[Image],
) -> Iterator[str]:
    """Yield a line for each proof: hashes, card, graph, golden pair, parity. Raises BundleError."""
    bundle = open_bundle(folder)
    yield f"hashes   {len(bundle.card.files)} files are as exported"
    _check_card(bundle)
    yield f"card     {bundle.card.name} {bundle.card.version}, the same inside the model"
    backend = open_backend(backend_name, bundle, precision=precision)
    try:
        yield f"graph    opens in {backend.name} at {backend.precision}"
        yield f"golden   {check_golden(bundle, backend_predict(backend, bundle.card), backend.precision)}"
        yield f"parity   {_compare(bundle, backend, checkpoint, images)}"
    finally:
        backend.close()


def _check_card(bundle: Bundle) -> None:
    """A bundle whose card and seal were both made again is still found out by what its model says."""
    embedded = embedded_card(bundle.model_path)
    if embedded != bundle.card.model_copy(update=WRITTEN_LATER):
        raise BundleError(
            f"The card of {bundle.folder} differs from the one inside its model.",
            "the card as it was exported",
            "Export the bundle again: a card is not edited by hand.",
        )


def _compare(bundle: Bundle, backend: Backend, checkpoint: Checkpoint | None, images: Iterable[Image]) -> str:
    if checkpoint is None:
        return "not measured again: name the network with --checkpoint"
    card = bundle.card
    reference = reference_predict(checkpoint.build_predictor(card.view or None), card.has_confidence)
    fitted = (fit_to_card(image_hwc, card) for image_hwc in images)
    agreement = measure_agreement(reference, backend_predict(backend, card), fitted)
    require_agreement(agreement, backend.name, backend.precision)
    return str(agreement)
