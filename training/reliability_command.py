"""`reliability` of a checkpoint or a bundle: does its confidence mean something?"""

from __future__ import annotations

import argparse
from pathlib import Path

from service.contract.geometry import FitRule
from service.contract.model_card import InputSize
from service.errors import DataError
from training.evaluate import add_data_arguments, select_samples, write_figures
from training.reliability import PredictUncertain, Reliability, measure_reliability

PLOT_SUFFIXES = (".svg", ".png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `surgseg-train reliability` and `surgseg-export reliability`."""
    add_data_arguments(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg|FILE.png", help="draw the diagram here")


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `surgseg-train reliability`."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--view", metavar="NAME", help="the view to measure (default: what predicts)")
    add_arguments(parser)


def run_checkpoint(arguments: argparse.Namespace) -> None:
    """`surgseg-train reliability`: with the disagreement of the views where the method has two."""
    from training.checkpoint import load_checkpoint  # torch takes seconds, which --help must not
    from training.device import choose_device
    from training.uncertainty import find_pair, make_uncertain_predict

    checkpoint = load_checkpoint(arguments.checkpoint)
    device = choose_device("auto")
    predictor, pair = checkpoint.build_predictor(arguments.view), find_pair(checkpoint)
    predict = make_uncertain_predict(predictor, pair, device)
    view = f", view {arguments.view}" if arguments.view else ""
    name = f"{checkpoint.recipe_name}: {checkpoint.method}{view}"
    run_reliability(
        arguments, predict, checkpoint.input_size, checkpoint.recipe.fit, len(checkpoint.classes), name
    )


def run_reliability(
    arguments: argparse.Namespace,
    predict: PredictUncertain,
    input_size: InputSize,
    fit: FitRule,
    classes: int,
    name: str,
) -> Reliability:
    """Measure as the command line asks, print the figures and write what was asked for.

    `name` is what the diagram says was measured.
    """
    if arguments.plot is not None and arguments.plot.suffix.lower() not in PLOT_SUFFIXES:
        raise DataError(
            f"--plot {arguments.plot}.",
            f"a name that ends in {' or '.join(PLOT_SUFFIXES)}",
            "Choose such a name.",
        )
    data = arguments.data.partition(":")[0]
    reliability = measure_reliability(
        predict, select_samples(arguments), input_size, fit, classes=classes, data=data
    )
    print(reliability.to_table())
    write_figures(arguments, reliability.to_json())
    if arguments.plot is not None:
        from training.reliability_plot import draw_reliability  # matplotlib takes a second

        frames = len(reliability.frames)
        draw_reliability(reliability, f"{name}, on {data} ({frames} frames)", arguments.plot)
    return reliability
