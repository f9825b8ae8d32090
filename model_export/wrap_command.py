"""surgseg-export wrap: turn a network that was trained elsewhere into a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_export.bundle import describe_golden
from model_export.bundle_command import add_writing
from model_export.foreign_card import EXAMPLE, ForeignCard
from model_export.frames import proof_images
from model_export.wrapped_bundle import wrap_model
from training.data.samples import read_image


class _PrintExample(argparse.Action):
    """As --help does: print, and end well whatever else is missing."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: str | Sequence[Any] | None,
        _option: str | None = None,
    ) -> None:
        print(EXAMPLE, end="")
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export wrap`."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL.onnx", help="a network: float pictures in, logits out"
    )
    parser.add_argument(
        "--card", type=Path, required=True, metavar="CARD.toml", help="what the network is (docs/wrap.md)"
    )
    parser.add_argument("--example", action=_PrintExample, nargs=0, help="print a card to begin with")
    add_writing(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle and say where, what was changed, and how well it agrees with the network."""
    bundle, agreement, notes = wrap_model(
        arguments.model,
        ForeignCard.load(arguments.card),
        arguments.out,
        proof_images(arguments.data, arguments.limit),
        has_confidence=arguments.confidence,
        golden_image_hwc=None if arguments.golden is None else read_image(arguments.golden),
        replace=arguments.force,
    )
    for note in notes:
        print(f"{arguments.model}: {note}")
    if lack := describe_golden(bundle):
        print(lack)
    size_mb = bundle.model_path.stat().st_size / 1e6
    print(f"{bundle.folder}: {bundle.card.name} {bundle.card.version}, {size_mb:.1f} MB, {agreement}")
    return 0
