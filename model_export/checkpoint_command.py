"""surgseg-export checkpoint: make a checkpoint of a bundle whose own is lost, to train from or to distil from."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from model_export.adapt_start import make_checkpoint, open_start
from service.errors import BundleError
from training.config import DataConfig, NetworkConfig, load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export checkpoint`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="the checkpoint to write")
    parser.add_argument(
        "--data",
        required=True,
        metavar="READER:PATH",
        help="frames like those it was trained on, to measure BatchNorm's statistics on; labels are not used",
    )


def run(arguments: argparse.Namespace) -> int:
    """Rebuild the network, prove that it gives the bundle's labels, and write it."""
    if not arguments.bundle.is_dir() or arguments.out.exists():
        is_there = arguments.out.exists()
        raise BundleError(
            f"{arguments.out} exists." if is_there else f"There is no bundle at {arguments.bundle}.",
            "a new file" if is_there else "a bundle's folder",
            "Choose another --out." if is_there else "Check the path.",
        )
    start = replace(
        open_start(arguments.bundle, arguments.out.parent, NetworkConfig()), checkpoint=arguments.out
    )
    assert start.bundle is not None
    card = start.bundle.card
    recipe = load_recipe(Path("adapt")).model_copy(
        update={
            "labeled": (),
            "unlabeled": (DataConfig(source=arguments.data),),
            "network": start.network,
            "input_size": card.input_size,
            "fit": card.fit,
            "classes": card.classes,
        }
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    make_checkpoint(start, start.bundle, recipe, ())
    print(f"{arguments.out}: {start.name}, {start.network.name} {start.network.options}")
    return 0
