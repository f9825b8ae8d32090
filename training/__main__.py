"""surgseg-train run | evaluate | reliability | sweep | report | throughput | data."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import DataError, SurgsegError
from training.data.check import add_arguments as add_check_arguments
from training.data.check import run_check
from training.data.screen_command import add_arguments as add_screen_arguments
from training.data.screen_command import run_screen
from training.evaluate import add_arguments
from training.reliability_command import add_checkpoint_arguments as add_reliability_arguments
from training.reliability_command import run_checkpoint
from training.throughput_command import add_arguments as add_throughput_arguments
from training.throughput_command import run_throughput

if TYPE_CHECKING:
    from training.distributed import Processes
    from training.trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a clear error, 130 stopped by Ctrl-C."""
    arguments = _parse(argv)
    is_silent = os.environ.get("RANK", "0") != "0"  # of the processes of torchrun, the first speaks for all
    try:
        arguments.action(arguments)
    except SurgsegError as error:
        if not is_silent:
            print(f"surgseg-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hints = {_run: "; continue with --resume", _sweep: "; the same command continues"}
        hint = hints.get(arguments.action, "")
        if not is_silent:
            print(f"surgseg-train: stopped{hint}", file=sys.stderr)
        return 130
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="surgseg-train", description="Train and evaluate segmentation networks."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train by a recipe")
    run.add_argument("recipe", type=Path, help="a TOML file, or the name of a recipe that ships")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe"
    )
    run.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME)")
    run.add_argument("--resume", action="store_true", help="continue the run in the folder")
    run.set_defaults(action=_run)
    evaluate = commands.add_parser("evaluate", help="measure a checkpoint on labeled data")
    evaluate.add_argument("checkpoint", type=Path)
    evaluate.add_argument("--view", metavar="NAME", help="the view to measure (default: what predicts)")
    add_arguments(evaluate)
    evaluate.set_defaults(action=_evaluate)
    reliability = commands.add_parser("reliability", help="measure whether a checkpoint's confidence holds")
    add_reliability_arguments(reliability)
    reliability.set_defaults(action=run_checkpoint)
    _add_comparison(commands)
    _add_data(commands)
    throughput = commands.add_parser(
        "throughput", help="compare the speed of Min-Max Similarity with its released loop"
    )
    add_throughput_arguments(throughput)
    throughput.set_defaults(action=run_throughput)
    return parser.parse_args(argv)


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser(
        "data",
        help="look at a data set before training on it",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = data.add_subparsers(required=True, metavar="TASK")
    check = tasks.add_parser("check", help="name everything that is wrong with it")
    add_check_arguments(check)
    check.set_defaults(action=run_check)
    screen = tasks.add_parser("screen", help="count the unlabeled frames that are worth learning from")
    add_screen_arguments(screen)
    screen.set_defaults(action=run_screen)
    data.epilog = check.format_usage() + screen.format_usage()


def _add_comparison(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sweep = commands.add_parser("sweep", help="train methods, label shares, folds and seeds to compare them")
    sweep.add_argument("sweep", type=Path, help="a TOML file, or the name of a sweep that ships")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="the sweep's folder (default: runs/NAME)")
    sweep.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    sweep.set_defaults(action=_sweep)
    report = commands.add_parser("report", help="make one HTML page of a sweep's results")
    report.add_argument("folder", type=Path, metavar="DIR", help="a sweep's folder")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page (default: DIR/report.html)")
    report.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown, too")
    report.add_argument("--no-frames", action="store_true", help="leave the data's pictures out")
    report.set_defaults(action=_report)


def _run(arguments: argparse.Namespace) -> None:
    from training.distributed import join_processes

    with join_processes() as processes:
        with processes.together():
            trainer = _open_run(arguments, processes)
        trainer.run(progress=processes.is_first)
        if processes.is_first:
            print(f"best validation Dice {trainer.best_dice:.3f}: {trainer.folder / 'best.pt'}")


def _open_run(arguments: argparse.Namespace, processes: Processes) -> Trainer:
    from training.config import load_recipe
    from training.trainer import LAST, Trainer

    recipe = load_recipe(arguments.recipe, arguments.set)
    folder = arguments.out or Path("runs") / recipe.name
    exists = (folder / LAST).exists()
    if exists and not arguments.resume:
        raise DataError(
            f"{folder} already holds a run.", "a new folder", "Add --resume, or name another --out."
        )
    trainer = Trainer(recipe, folder, processes=processes)
    if arguments.resume:
        trainer.resume()
    return trainer


def _evaluate(arguments: argparse.Namespace) -> None:
    from training.checkpoint import load_checkpoint
    from training.device import choose_device
    from training.evaluate import run_evaluation
    from training.prediction import make_predict

    checkpoint = load_checkpoint(arguments.checkpoint)
    device = choose_device("auto")
    predict = make_predict(checkpoint.build_predictor(arguments.view).to(device), device)
    run_evaluation(arguments, predict, checkpoint.input_size, checkpoint.recipe.fit, checkpoint.classes)


def _sweep(arguments: argparse.Namespace) -> None:
    from training.sweep import run_sweep

    run_sweep(arguments.sweep, arguments.out or Path("runs") / arguments.sweep.stem, arguments.jobs)


def _report(arguments: argparse.Namespace) -> None:
    from training.report import write_report

    page = arguments.out or arguments.folder / "report.html"
    write_report(arguments.folder, page, arguments.markdown, frames=not arguments.no_frames)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
