"""surgseg-export bundle: turn a checkpoint into a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from model_export.bundle import describe_golden, write_bundle
from model_export.card import Description, read_metric
from model_export.frames import proof_images
from service.contract.model_card import Precision
from training.checkpoint import load_checkpoint
from training.data.samples import read_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export bundle`."""
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of a training run")
    add_writing(parser)
    parser.add_argument(
        "--view", metavar="NAME", help="the view of the method to export (default: what predicts)"
    )
    parser.add_argument("--name", default="", help="the model's name (default: the recipe's)")
    parser.add_argument("--version", default="0.1.0", help="the model's version (%(default)s)")
    parser.add_argument("--description", default="", help="one sentence for the model card")
    parser.add_argument(
        "--metrics",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.json",
        help="an evaluation; may be repeated",
    )
    parser.add_argument(
        "--limits", action="append", default=[], metavar="TEXT", help="a known limit; may be repeated"
    )
    parser.add_argument(
        "--intensities",
        default="",
        metavar="TEXT",
        help="what the levels 0 to 255 of a grey picture stand for (default: the recipe's)",
    )


def add_writing(parser: argparse.ArgumentParser) -> None:
    """The options of every command that writes a new bundle and proves it."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the bundle's folder, made new"
    )
    parser.add_argument(
        "--confidence",
        action="store_true",
        help="give the model a second output: how sure it is of each pixel",
    )
    parser.add_argument("--force", action="store_true", help="replace the bundle that is at DIR")
    parser.add_argument(
        "--data", metavar="READER:PATH", help="prove parity on these frames; drawn pictures otherwise"
    )
    parser.add_argument(
        "--limit", type=positive, default=64, help="prove parity on at most so many frames (%(default)s)"
    )
    parser.add_argument(
        "--golden", type=Path, metavar="PICTURE", help="the golden picture; a drawn one otherwise"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """The option of every command that opens a bundle with a backend."""
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="what to compute in (the fastest of this machine)"
    )


def positive(text: str) -> int:
    """An integer above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle and say where and how well it agrees with the network."""
    description = Description(
        name=arguments.name,
        version=arguments.version,
        text=arguments.description,
        metrics=tuple(read_metric(path) for path in arguments.metrics),
        limits=tuple(arguments.limits),
        intensities=arguments.intensities,
    )
    bundle, agreement = write_bundle(
        load_checkpoint(arguments.checkpoint),
        arguments.out,
        description,
        proof_images(arguments.data, arguments.limit),
        view=arguments.view,
        has_confidence=arguments.confidence,
        golden_image_hwc=None if arguments.golden is None else read_image(arguments.golden),
        replace=arguments.force,
    )
    size_mb = bundle.model_path.stat().st_size / 1e6
    print(f"{bundle.folder}: {bundle.card.name} {bundle.card.version}, {size_mb:.1f} MB, {agreement}")
    if lack := describe_golden(bundle):
        print(lack)
    return 0
