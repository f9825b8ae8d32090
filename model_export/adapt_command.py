"""surgseg-export adapt: a few labeled frames and many unlabeled ones of a site become a bundle for that site."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from model_export.adapt_data import parse_data
from model_export.adapt_report import compare, describe_run, write_report
from model_export.adapt_site import Site, read_site
from model_export.adapt_training import load_adaptation, make_supervised, measure, train
from model_export.bundle import write_bundle
from model_export.bundle_command import positive
from model_export.card import Description, read_metric
from model_export.check_command import check
from model_export.frames import proof_images
from service.errors import DataError
from training.checkpoint import Checkpoint
from training.config import Recipe

ADAPTED, SUPERVISED = "adapted", "supervised"
MEASURED = "test.json"
PROOF_FRAMES = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export adapt`."""
    data = "or READER:PATH; ,key=value adds a key of a recipe's data table"
    parser.add_argument(
        "--labeled", required=True, metavar="DIR", help=f"a folder with image/ and mask/, {data}"
    )
    parser.add_argument(
        "--unlabeled",
        required=True,
        action="append",
        metavar="PATH",
        help=f"a video, or a folder of videos or pictures, {data}; may be repeated",
    )
    parser.add_argument("--test", metavar="DIR", help=f"labeled frames to measure on, {data}")
    parser.add_argument(
        "--transductive", action="store_true", help="permit test pictures among the unlabeled ones"
    )
    parser.add_argument(
        "--compare", action="store_true", help="also train on the labels alone, and measure both on --test"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="BUNDLE", help="the bundle's folder, made new"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="what training writes (default: BUNDLE-work)")
    parser.add_argument("--recipe", type=Path, default=Path("adapt"), help="how to train (%(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe"
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="how long to train (default: the recipe's)")
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT", help="start from its weights")
    parser.add_argument("--name", default="", help="the model's name (default: the bundle's folder)")
    parser.add_argument("--version", default="0.1.0", help="the model's version (%(default)s)")
    parser.add_argument(
        "--licence", default="unknown", help="of the frames and so of the model (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, hold out, train, measure, export and check again; a line for each. Gives 130 for Ctrl-C."""
    work = arguments.work or arguments.out.with_name(f"{arguments.out.name}-work")
    _require_new(arguments, work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        _adapt(arguments, work)
    except OSError as error:
        raise DataError(
            f"{error.filename or work} cannot be used ({error.strerror or error}).",
            "files that can be read and written, on a disk that is not full",
            "Mend that and give the same command again: it continues.",
        ) from error
    except KeyboardInterrupt:
        print(f"surgseg-export: stopped; the same command continues from {work}", file=sys.stderr)
        return 130
    return 0


def _require_new(arguments: argparse.Namespace, work: Path) -> None:
    """Refuse at once what would only fail after hours of training."""
    out = arguments.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists.", "the name of a new folder", "Name another --out, or remove it.")
    if out.resolve() == work.resolve():
        raise DataError(
            f"--work and --out are both {out}.", "two folders", "Leave --work out, or name another."
        )
    if arguments.compare and arguments.test is None:
        raise DataError(
            "--compare is given without --test.",
            "labeled frames of other operations to compare on",
            "Add --test, or leave --compare out.",
        )


def _adapt(arguments: argparse.Namespace, work: Path) -> None:
    recipe = load_adaptation(arguments.recipe, arguments.set, arguments.steps, arguments.start)
    site = read_site(
        parse_data(arguments.labeled, "folder"),
        [parse_data(text, "video", screen=True) for text in arguments.unlabeled],
        None if arguments.test is None else parse_data(arguments.test, "folder"),
        len(recipe.classes),
        work,
        is_transductive=arguments.transductive,
    )
    recipe = site.fill(recipe, arguments.licence)
    command = shlex.join(["surgseg-export", *sys.argv[1:]])
    report: dict[str, Any] = {"command": command, **site.describe(), "runs": {}}
    adapted = _train(recipe, work / ADAPTED, command, site, report)
    if arguments.compare:
        supervised = make_supervised(recipe)
        _train(supervised, work / SUPERVISED, command, site, report)
        _announce("compared", f"both on {len(site.test)} frames that neither has seen")
        table, gain = compare(*(report["runs"][name]["test"] for name in (ADAPTED, SUPERVISED)))
        report["gain"] = gain
        print(table)
    write_report(work, report)
    report["bundle"] = _export(arguments, adapted, site, work)
    _announce("report", str(write_report(work, report)))
    _announce("serve", f"surgseg serve --bundle {shlex.quote(str(arguments.out))}")


def _train(recipe: Recipe, folder: Path, command: str, site: Site, report: dict[str, Any]) -> Checkpoint:
    """Train, measure where there is something to measure on, and note both in the report."""
    begin = recipe.init_from or "random weights"
    _announce("train", f"{recipe.method_name}, {recipe.steps} steps from {begin}, in {folder}")
    checkpoint = train(recipe, folder, command)
    chosen = f"Dice {checkpoint.validation_dice:.3f} on the held-out frames, at step {checkpoint.step}"
    _announce("trained", chosen)
    evaluation = measure(checkpoint, site.test, site.test_name) if site.test else None
    if evaluation is not None:
        print(evaluation.to_table())
    report["runs"][folder.name] = describe_run(checkpoint, folder, evaluation)
    return checkpoint
