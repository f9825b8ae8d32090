"""surgseg-train throughput: the speed of training Min-Max Similarity beside that of its released loop."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def to_table(result: dict[str, Any]) -> str:
    """A line per loop: median and range of pictures a second, passes a second, peak memory."""
    lines = [f"{'loop':<14}{'pictures/s':>12}{'lowest':>10}{'highest':>10}{'passes/s':>10}{'peak MiB':>10}"]
    for name, loop in result["loops"].items():
        rates, peak_mib = loop["pictures_per_s_turns"], loop["peak_memory_bytes"] / 2**20
        lines.append(
            f"{name:<14}{loop['pictures_per_s']:>12.2f}{min(rates):>10.2f}{max(rates):>10.2f}"
            f"{loop['passes_per_s']:>10.2f}{peak_mib:>10.0f}"
        )
    recipe = result["recipe"]
    size, network = recipe["input_size"], recipe["network"]["name"]
    lines.append(
        f"{result['times_faster']:.2f} times as many pictures a second; {network}, {size['width']} x "
        f"{size['height']}, {recipe['precision']} against float32, batch {recipe['batch_size']} + "
        f"{recipe['unlabeled_batch_size']} against 2 + 1, {result['device']}, {result['cores']} cores"
    )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `surgseg-train throughput`."""
    parser.add_argument(
        "recipe", type=Path, help="a recipe of min_max_similarity, or the name of one that ships"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe"
    )
    parser.add_argument(
        "--steps", type=_positive, default=20, metavar="N", help="timed steps a turn (default: 20)"
    )
    parser.add_argument(
        "--rounds", type=_positive, default=3, metavar="N", help="turns of each loop (default: 3)"
    )
    parser.add_argument(
        "--warmup",
        type=_positive,
        default=8,
        metavar="N",
        help="steps before each turn that are not timed, which use up what was prepared meanwhile (default: 8)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")


def run_throughput(arguments: argparse.Namespace) -> None:
    """Measure as the command line asks, print the table and write what was asked for."""
    from training.config import load_recipe
    from training.throughput import measure

    recipe = load_recipe(arguments.recipe, arguments.set)
    result = measure(recipe, arguments.steps, arguments.rounds, arguments.warmup)
    print(to_table(result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value
