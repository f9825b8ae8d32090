"""surgseg-export adapt: a few labeled frames and many unlabeled ones of a site become a bundle for that site."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from model_export.adapt_data import LabeledFrames, parse_data
from model_export.adapt_report import compare, describe_run, write_json
from model_export.adapt_site import Site, announce, read_site
from model_export.adapt_start import Start, make_checkpoint, open_start
from model_export.adapt_training import load_adaptation, make_supervised, measure, overridden_keys, train
from model_export.bundle import write_bundle
from model_export.bundle_command import positive
from model_export.card import Description, read_metric
from model_export.check_command import check
from model_export.frames import proof_images
from service.errors import DataError
from training.checkpoint import Checkpoint
from training.config import Recipe
from training.evaluate import Evaluation

RECIPE, RECIPE_FROM_START = "adapt", "adapt_from_start"
ADAPTED, SUPERVISED = "adapted", "supervised"
REPORT, TEST = "report.json", "test.json"
PROOF_FRAMES = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `surgseg-export adapt`."""
    _add_data_arguments(parser)
    parser.add_argument(
        "--compare", action="store_true", help="also train on the labels alone, and measure both on --test"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="BUNDLE", help="the bundle's folder, made new"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="what training writes (default: BUNDLE-work)"
    )
    parser.add_argument(
        "--recipe", type=Path, help=f"how to train (default: {RECIPE}, with --start {RECIPE_FROM_START})"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe"
    )
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="how long to train (default: the recipe's)"
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="BUNDLE|CHECKPOINT",
        help="start from the weights of the bundle in service, or of a training run",
    )
    parser.add_argument("--name", default="", help="the model's name (default: the bundle's folder)")
    parser.add_argument("--version", default="0.1.0", help="the model's version (%(default)s)")
    parser.add_argument(
        "--licence", default="unknown", help="of the frames and so of the model (%(default)s)"
    )


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
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
    recipe, start = _load_recipe(arguments, work)
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
    if start is not None:
        report["start"] = _describe_start(start, recipe, site)
    adapted = _train(recipe, work / ADAPTED, site.test, report)
    if arguments.compare:
        _train(make_supervised(recipe), work / SUPERVISED, site.test, report)
        tests = [report["runs"][name]["test"] for name in (ADAPTED, SUPERVISED)]
        report["gain"] = tests[0]["overall"]["dice"]["mean"] - tests[1]["overall"]["dice"]["mean"]
        announce("compared", "with and without the unlabeled frames, on the test frames")
        print(compare(*tests))
    write_json(work / REPORT, report)  # now: what was measured is kept, whatever becomes of the export
    report["bundle"] = _export(arguments, adapted, site, start, work)
    write_json(work / REPORT, report)
    announce("report", str(work / REPORT))
    announce("serve", f"surgseg serve --bundle {shlex.quote(str(arguments.out))}")


def _load_recipe(arguments: argparse.Namespace, work: Path) -> tuple[Recipe, Start | None]:
    name = RECIPE if arguments.start is None else RECIPE_FROM_START
    recipe = load_adaptation(arguments.recipe or Path(name), arguments.set, arguments.steps)
    if arguments.start is None:
        return recipe, None
    start = open_start(arguments.start, work, recipe.network)
    return start.apply(recipe, overridden_keys(arguments.set)), start


def _describe_start(start: Start, recipe: Recipe, site: Site) -> dict[str, Any]:
    """What training begins with; a bundle is rebuilt for it, and measured as it is: that is what there is to beat."""
    described: dict[str, Any] = {"name": start.name, "checkpoint": str(start.checkpoint)}
    if start.bundle is None:
        return described
    checkpoint = make_checkpoint(start, start.bundle, recipe, site.held_out)
    if len(checkpoint.classes) != len(recipe.classes):
        announce("start", f"{start.name}, without its last layer: it has {len(checkpoint.classes)} classes")
        return described
    announce("start", f"{start.name}: Dice {checkpoint.validation_dice:.3f} on the held-out frames")
    described["held_out_dice"] = checkpoint.validation_dice
    if site.test is not None:
        described["test"] = _measure(checkpoint, site.test, start.name).to_json()
    return described


def _measure(checkpoint: Checkpoint, test: LabeledFrames, name: str) -> Evaluation:
    evaluation = measure(checkpoint, test.samples, Path(test.config.source.partition(":")[2]).name)
    announce("measured", f"{name} on the test frames")
    print(evaluation.to_table())
    return evaluation


def _train(recipe: Recipe, folder: Path, test: LabeledFrames | None, report: dict[str, Any]) -> Checkpoint:
    """Train, measure where there is something to measure on, and add both to the report."""
    start = recipe.init_from or "random weights"
    announce("train", f"{recipe.method_name}, {recipe.steps} steps from {start}, in {folder}")
    checkpoint = train(recipe, folder, report["command"])
    chosen = f"Dice {checkpoint.validation_dice:.3f} on the held-out frames, at step {checkpoint.step}"
    announce("trained", chosen)
    before = report.get("start", {}).get("held_out_dice", -1.0)
    if checkpoint.validation_dice <= before:
        announce(
            "warning", f"no better than the {before:.3f} of the start: look at both before you serve this"
        )
    evaluation = None
    if test is not None:
        evaluation = _measure(checkpoint, test, recipe.method_name)
        write_json(folder / TEST, evaluation.to_json())
    report["runs"][folder.name] = describe_run(checkpoint, folder, evaluation)
    return checkpoint


def _export(
    arguments: argparse.Namespace, checkpoint: Checkpoint, site: Site, start: Start | None, work: Path
) -> dict[str, Any]:
    """Write the bundle, check it as `surgseg-export check` does, and give what the report says of it."""
    limits = [f"Learned from {len(site.learned)} labeled frames of one site: others may look different."]
    if start is not None:
        limits.append(f"Started from {start.name}: what limits that may limit this.")
    if site.test is None:
        limits.append("Not measured on any operation but those it was trained on.")
    description = Description(
        name=arguments.name or arguments.out.name,
        version=arguments.version,
        licence=arguments.licence,
        metrics=() if site.test is None else (read_metric(work / ADAPTED / TEST),),
        limits=tuple(limits),
        learned_before=() if start is None else start.sources,
    )
    proof = site.unlabeled[0].config.source
    images = proof_images(proof, PROOF_FRAMES)
    bundle, agreement = write_bundle(checkpoint, arguments.out, description, images)
    size_mb = bundle.model_path.stat().st_size / 1e6
    announce("exported", f"{bundle.folder}: {bundle.card.name} {bundle.card.version}, {size_mb:.1f} MB")
    lines = list(check(arguments.out, "auto", None, checkpoint, proof_images(proof, PROOF_FRAMES)))
    for line in lines:
        announce("checked", line)
    return {"folder": str(bundle.folder), "agreement": str(agreement), "checks": lines}
