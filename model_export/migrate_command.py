"""surgseg-export migrate: bring a bundle of an older surgseg up to this one, in format and in graph."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import onnx_ir as ir

from model_export.bundle_command import positive
from model_export.bundle_folder import copy_files, fill_unseen
from model_export.frames import proof_images
from model_export.graph_passes import multiply_last_resize, save_graph
from model_export.parity import check_golden, measure_agreement, require_agreement, run_graph
from model_export.pictures import fit_to_card
from service.contract.bundle import Bundle, hash_file, open_bundle, save_card
from service.contract.model_card import CARD_NAME, FORMAT_VERSION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export migrate`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--data", metavar="READER:PATH", help="prove parity on these frames; drawn pictures otherwise"
    )
    parser.add_argument(
        "--limit", type=positive, default=64, help="prove parity on at most so many frames (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Replace the bundle by one of the newest format whose graph in float32 has the newest passes, labels proven."""
    bundle = open_bundle(arguments.bundle)
    found = json.loads((bundle.folder / CARD_NAME).read_bytes())["format_version"]
    model = ir.load(bundle.model_path)
    passes = multiply_last_resize(model)
    if found == FORMAT_VERSION and not passes:
        print(f"{bundle.folder}: nothing to do")
        return 0
    with fill_unseen(bundle.folder, replace=True) as partial:
        copy_files(bundle, partial)
        card = bundle.card
        if passes:
            name = card.models["float32"].file
            save_graph(model, partial / name)
            card = card.model_copy(update={"files": {**card.files, name: hash_file(partial / name)}})
        save_card(card, partial)
        if passes:
            _prove(bundle, open_bundle(partial), arguments)
    print(f"{bundle.folder}: format {found} to {FORMAT_VERSION}, {passes} resizes made products of matrices")
    print(f"fingerprint {open_bundle(bundle.folder).fingerprint}")
    return 0


def _prove(before: Bundle, after: Bundle, arguments: argparse.Namespace) -> None:
    images = (fit_to_card(each, before.card) for each in proof_images(arguments.data, arguments.limit))
    predict = run_graph(after.model_path)
    check_golden(after, predict, "float32")
    agreement = measure_agreement(run_graph(before.model_path), predict, images)
    require_agreement(agreement, "onnxruntime-cpu", "float32")
    print(agreement)
