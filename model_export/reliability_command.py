"""surgseg-export reliability: does the confidence that a bundle gives mean something?"""

from __future__ import annotations

import argparse
from pathlib import Path

from model_export.bundle_command import add_precision
from service.backends import open_backend
from service.backends.base import require_confidence
from service.contract.bundle import open_bundle
from training.reliability import Prediction
from training.reliability_command import add_arguments as add_reliability_arguments
from training.reliability_command import run_reliability


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export reliability`: those of `surgseg-train reliability`, for a bundle."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--backend", default="auto", help="the service's backend to measure with (%(default)s)"
    )
    add_precision(parser)
    add_reliability_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the figures and write what was asked for. Raises BundleError for a bundle without confidence."""
    bundle = open_bundle(arguments.bundle)
    card = bundle.card
    require_confidence(card)
    backend = open_backend(arguments.backend, bundle, precision=arguments.precision)
    try:
        run_reliability(
            arguments,
            lambda images_nhwc: Prediction(*backend.segment_with_confidence(images_nhwc)),
            card.input_size,
            card.fit,
            len(card.classes),
            f"{card.name} {card.version} on {backend.name}",
        )
    finally:
        backend.close()
    return 0
