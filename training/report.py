"""`surgseg-train report`: one HTML page of a sweep, with nothing to load from elsewhere, and its tables as Markdown."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import cv2

from training.comparison import (
    Comparison,
    Table,
    cost_table,
    fold_table,
    format_share,
    overall_table,
    read_comparison,
    view_table,
)
from training.report_page import figure, fill_page, note, render_table
from training.report_plots import plot_by_share, plot_differences, plot_learning, plot_videos
from training.sweep import RUNS
from training.sweep_run import FRAMES, KEPT_PICTURES, write_whole
from training.volume_table import volume_table

PICTURE_WIDTH = 300

COMPARED = "All runs are equal in everything but method, labels, fold and seed."
OVERALL = (
    "Mean ± standard deviation over all runs of a row, folds and seeds together; seed spread is what is left of it "
    "within a fold. Differences are paired: each run against the supervised run of the same labels, fold and seed, so "
    "what makes a fold hard cancels. “Better in” counts the pairs above 0."
)
WHOLE_VOLUMES = (
    "Slices put back on the volume's own grid and compared in 3-D. A run's figure is the mean over structures of the "
    "mean over volumes; mean ± standard deviation over runs. HD95 is over volumes in which both masks have the "
    "structure; where only the label has it, it is missed: Dice and NSD 0. All else on this page is by slice."
)
BY_SHARE = "Each dot is a run; each mark a method's mean, with the standard deviation over folds and seeds."
DIFFERENCES = (
    "Each tick is a pair of runs with the same labels, fold and seed; the mark below the ticks is their mean with the "
    "standard deviation. Right of the line is better than supervised training."
)
FOLDS = "Test Dice of the held-out video, mean ± standard deviation over the seeds."
VIDEOS = "The held-out video of each fold. Dots are seeds, marks their mean."
LEARNING = (
    "Dice on the validation part during training; the best checkpoint by it is the one tested. Thin lines are runs, "
    "thick ones means."
)
VIEWS = "Test Dice of each network of the methods that have several, and of what they make together."
COSTS = "Means over the runs that were made in one go. Minutes include validation and the test."
PICTURES = (
    "The lowest and the highest test Dice of the first seed. Green was found, blue was missed or taken for another "
    "class, red is not there."
)


def write_report(folder: Path, page: Path, markdown: Path | None = None, frames: bool = True) -> None:
    """Read a sweep's folder and write its page, and its tables as Markdown where asked. Raises DataError.

    `frames` False leaves the pictures of the data out: what must not be published stays out of a published report.
    """
    comparison = read_comparison(folder)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, make_page(comparison, frames))
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        write_whole(markdown, make_markdown(comparison))


def make_page(comparison: Comparison, frames: bool) -> str:
    """The whole HTML page."""
    sections = [
        _describe_gaps(comparison),
        render_table(describe_sweep(comparison), "What was compared", COMPARED),
        render_table(overall_table(comparison), "On the test part", OVERALL),
        render_table(volume_table(comparison), "Whole volumes of the test part", WHOLE_VOLUMES),
        figure("Dice by share of the labels", plot_by_share(comparison), BY_SHARE),
        figure("Difference to supervised training", plot_differences(comparison), DIFFERENCES),
        render_table(fold_table(comparison), "By fold", FOLDS),
        figure("By video", plot_videos(comparison), VIDEOS),
        figure("Learning", plot_learning(comparison), LEARNING),
        render_table(view_table(comparison), "Views", VIEWS),
        render_table(cost_table(comparison), "Cost", COSTS),
        *(_show_frames(comparison) if frames else ()),
    ]
    return fill_page(_title(comparison), sections)


def make_markdown(comparison: Comparison) -> str:
    """The tables of the page, for a document."""
    parts = [
        ("What was compared", COMPARED, describe_sweep(comparison)),
        ("On the test part", OVERALL, overall_table(comparison)),
        ("Whole volumes of the test part", WHOLE_VOLUMES, volume_table(comparison)),
        ("By fold", FOLDS, fold_table(comparison)),
        ("Views", VIEWS, view_table(comparison)),
        ("Cost", COSTS, cost_table(comparison)),
    ]
    gaps = [f"- **{kind}**: {text}" for kind, text in list_gaps(comparison)]
    texts = [f"# {_title(comparison)}", *(["\n".join(gaps)] if gaps else [])]
    for heading, caption, table in parts:
        if table.rows:
            texts += [f"## {heading}", caption, table.to_markdown()]
    return "\n\n".join(texts) + "\n"


def describe_sweep(comparison: Comparison) -> Table:
    """The recipe that all runs share, the data, and where and by which code they were made."""
    recipe, lines, planned = comparison.plan["recipe"], comparison.done, comparison.plan["runs"]
    size, network, optimizer = recipe["input_size"], recipe["network"], recipe["optimizer"]
    unlabeled = f" and {recipe['unlabeled_batch_size']} unlabeled" if recipe["unlabeled"] else ""
    methods = (f"{label}{_format_options(method)}" for label, method in comparison.plan["methods"].items())
    frames = sorted({(line["share"], line["labeled_frames"]) for line in lines})
    rows = {
        "methods": "; ".join(methods),
        "network": f"{network['name']}{_format_options(network['options'])}, {size['width']} x {size['height']}",
        "training": f"{recipe['steps']} steps of {recipe['batch_size']} labeled{unlabeled} pictures, "
        f"{recipe['precision']}, {optimizer['name']} at {optimizer['learning_rate']:g}, {optimizer['schedule']}",
        "labeled data": _name_sources(recipe["labeled"]),
        "unlabeled data": _name_sources(recipe["unlabeled"]),
        "labeled frames": ", ".join(f"{format_share(share)}: {count}" for share, count in frames),
        "folds": ", ".join(Path(fold).stem for fold in dict.fromkeys(run["fold"] for run in planned)),
        "seeds": ", ".join(str(seed) for seed in sorted({run["seed"] for run in planned})),
        "runs": f"{len(lines)} finished, {len(comparison.failed)} failed, {len(comparison.missing)} missing",
        "machine": _count_values(line["machine"] for line in lines),
        "commit": _count_values(_shorten(line["commit"]) for line in lines),
    }
    return Table(("", ""), list(rows.items()))


def list_gaps(comparison: Comparison) -> list[tuple[str, str]]:
    """What a reader has to know before believing a mean: every failed run with its reason, and the missing ones."""
    gaps = [("failed", f"{line['run']}: {line['error']}") for line in comparison.failed]
    missing: dict[tuple[float, str], list[str]] = {}
    for run in comparison.missing:
        place = f"{Path(run['fold']).stem} seed {run['seed']}"
        missing.setdefault((run["share"], run["method"]), []).append(place)
    gaps += [
        ("missing", f"{m}, {format_share(s)}: {', '.join(places)}") for (s, m), places in missing.items()
    ]
    return gaps


def _describe_gaps(comparison: Comparison) -> str:
    gaps = list_gaps(comparison)
    if not gaps:
        return ""
    counts = f"{len(comparison.failed)} failed, {len(comparison.missing)} missing"
    heading = (
        f"This comparison is not complete: {counts}. Rows with fewer runs rest on other folds and seeds."
    )
    return note(heading, [f"{kind}: {text}" for kind, text in gaps])


def _show_frames(comparison: Comparison) -> Iterator[str]:
    """The worst and the best frames of each method at each share, of the first seed."""
    yield f"<h2>Frames</h2><p>{PICTURES}</p>"
    for share in comparison.shares:
        rows = []
        for method in comparison.methods:
            lines = comparison.select(method=method, share=share)
            seed = min((line["seed"] for line in lines), default=0)
            folders = [
                comparison.folder / RUNS / line["run"] / FRAMES for line in lines if line["seed"] == seed
            ]
            pictures = sorted(
                (path for folder in folders for path in folder.glob("*.jpg")), key=lambda path: path.name
            )
            if pictures:
                shown = [*pictures[:KEPT_PICTURES], *pictures[KEPT_PICTURES:][-KEPT_PICTURES:]]
                rows.append(
                    f"<h3>{escape(method)}</h3><div class=frames>{''.join(map(_show_picture, shown))}</div>"
                )
        if rows:
            is_open = " open" if share == comparison.shares[0] else ""
            yield f"<details{is_open}><summary>{format_share(share)} of the labels</summary>{''.join(rows)}</details>"


def _show_picture(path: Path) -> str:
    dice, _, frame = path.stem.partition("_")
    image_bgr = cv2.imread(str(path))
    height = round(image_bgr.shape[0] * PICTURE_WIDTH / image_bgr.shape[1])
    small = cv2.resize(image_bgr, (PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA)
    data = base64.b64encode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()).decode()
    caption = f"{escape(frame)}, Dice {dice}"
    picture = f'<img alt="{caption}" src="data:image/jpeg;base64,{data}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _title(comparison: Comparison) -> str:
    return comparison.plan["description"].rstrip(".") or "Comparison of training methods"


def _format_options(options: dict[str, Any]) -> str:
    texts = [f"{key} = {value}" for key, value in options.items() if key != "name"]
    return f" ({', '.join(texts)})" if texts else ""


def _name_sources(tables: list[dict[str, Any]]) -> str:
    """Each source without the place it lies at."""
    parts = (table["source"].partition(":") for table in tables)
    names = (
        reader if reader == Path(path).name else f"{reader} {Path(path).name}" for reader, _, path in parts
    )
    return ", ".join(dict.fromkeys(names)) or "none"


def _shorten(commit: str) -> str:
    identity, plus, changes = commit.partition("+")
    return (identity[:12] + plus + changes) or "unknown"


def _count_values(values: Iterator[str]) -> str:
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({count} runs)" for value, count in counts.items())
