"""surgseg-export migrate: bring a bundle of an older format up to this one, card sealed."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from model_export.bundle_folder import fill_unseen
from service.contract.bundle import open_bundle, save_card
from service.contract.model_card import CARD_NAME, FORMAT_VERSION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export migrate`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")


def run(arguments: argparse.Namespace) -> int:
    """Replace the bundle by the same in the newest format; graphs and golden pictures stay byte for byte."""
    bundle = open_bundle(arguments.bundle)
    found = json.loads((bundle.folder / CARD_NAME).read_bytes())["format_version"]
    if found == FORMAT_VERSION:
        print(f"{bundle.folder}: already of format {FORMAT_VERSION}")
        return 0
    with fill_unseen(bundle.folder, replace=True) as partial:
        for name in bundle.card.files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.folder / name, partial / name)
        save_card(bundle.card, partial)
    migrated = open_bundle(bundle.folder)
    print(f"{migrated.folder}: format {found} to {FORMAT_VERSION}, fingerprint {migrated.fingerprint}")
    return 0
