"""surgseg-train run | evaluate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from service.errors import DataError, SurgsegError
from training.evaluate import add_arguments


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a clear error, 130 stopped by Ctrl-C."""
    arguments = _parse(argv)
    try:
        arguments.action(arguments)
    except SurgsegError as error:
        print(f"surgseg-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; continue with --resume" if arguments.action is _run else ""
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
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> None:
    from training.config import load_recipe
    from training.trainer import LAST, Trainer

    recipe = load_recipe(arguments.recipe, arguments.set)
    folder = arguments.out or Path("runs") / recipe.name
    exists = (folder / LAST).exists()
    if exists and not arguments.resume:
        raise DataError(
            f"{folder} already holds a run.", "a new folder", "Add --resume, or name another --out."
        )
    trainer = Trainer(recipe, folder)
    if arguments.resume:
        trainer.resume()
    trainer.run()
    print(f"best validation Dice {trainer.best_dice:.3f}: {folder / 'best.pt'}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from training.checkpoint import load_checkpoint
    from training.evaluate import run_evaluation
    from training.trainer import choose_device, make_predict

    checkpoint = load_checkpoint(arguments.checkpoint)
    device = choose_device("auto")
    predict = make_predict(checkpoint.build_predictor(arguments.view).to(device), device)
    run_evaluation(arguments, predict, checkpoint.input_size, checkpoint.recipe.fit, len(checkpoint.classes))


if __name__ == "__main__":
    sys.exit(main())
