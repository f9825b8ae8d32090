"""surgseg-export evaluate: measure a bundle on labeled frames, through the backend that serves it."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_export.bundle_command import add_precision
from service.backends import open_backend
from service.contract.bundle import open_bundle
from training import evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export evaluate`: those of `surgseg-train evaluate`, for a bundle."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--backend", default="auto", help="the service's backend to measure with (%(default)s)"
    )
    add_precision(parser)
    evaluate.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table per video and overall, and write what was asked for."""
    bundle = open_bundle(arguments.bundle)
    backend = open_backend(arguments.backend, bundle, precision=arguments.precision)
    card = bundle.card
    try:
        evaluate.run_evaluation(arguments, backend.segment, card.input_size, card.fit, card.classes)
    finally:
        backend.close()
    return 0
