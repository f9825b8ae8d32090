"""The reliability diagram as a picture: what was promised against what was right, and how many pixels that concerns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from training.reliability import Bin, LevelCounts, Reliability

ALL, TOOL, VIEWS = "#33658a", "#d1495b", "#4f772d"


def draw_reliability(reliability: Reliability, title: str, path: Path) -> None:
    """Write the diagram, SVG or PNG by the suffix: confidence, disagreement where there is one, frames by Dice."""
    columns = 2 if reliability.disagreement is None else 3
    figure = Figure(figsize=(4.6 * columns, 5.4), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(2, columns, height_ratios=(3, 1))
    upper, lower = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    _draw_confidence(upper, reliability)
    _draw_counts(lower, {"all": reliability.confidence, "instrument": reliability.instrument})
    lower.set_xlabel("confidence (probability of the predicted class)")
    lower.sharex(upper)
    if reliability.disagreement is not None:
        upper, lower = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
        _draw_disagreement(upper, reliability.disagreement)
        _draw_counts(lower, {"views": reliability.disagreement})
        lower.set_xlabel("disagreement of the two views (total variation)")
        lower.sharex(upper)
    _draw_frames(figure.add_subplot(grid[:, -1]), reliability)
    path.parent.mkdir(parents=True, exist_ok=True)
    # without a date, so that the same figures give the same file
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _draw_confidence(axes: Axes, reliability: Reliability) -> None:
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="perfectly calibrated")
    shown = (
        ("all pixels", ALL, reliability.confidence),
        ("not predicted background", TOOL, reliability.instrument),
    )
    for name, colour, counts in shown:
        bins = counts.bins()
        label = f"{name} (ECE {counts.calibration_error():.3f})"
        axes.plot(
            [b.mean for b in bins], [b.right for b in bins], "o-", color=colour, markersize=4, label=label
        )
    lowest = min((b.low for b in reliability.confidence.bins()), default=0.0)
    axes.set(xlim=(lowest, 1), ylim=(0, 1.02), ylabel="share of pixels that are right")
    axes.set_title("Is it as often right as it says?", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)


def _draw_disagreement(axes: Axes, counts: LevelCounts) -> None:
    bins = counts.bins()
    axes.plot([b.mean for b in bins], [1 - b.right for b in bins], "o-", color=VIEWS, markersize=4)
    area = counts.area_under_curve(rises_with_error=True)
    highest = max((b.high for b in bins), default=1.0)
    axes.set(xlim=(0, highest), ylim=(0, 1.02), ylabel="share of pixels that are wrong")
    known = "" if area is None else f" (AUROC {area:.3f})"
    axes.set_title(f"Is it wrong where the views disagree?{known}", fontsize=10)
    axes.grid(alpha=0.3)


def _draw_counts(axes: Axes, shown: dict[str, LevelCounts]) -> None:
    """Bars of the share of pixels in each bin, on a logarithmic scale, because most pixels are sure."""
    colours = {"all": ALL, "instrument": TOOL, "views": VIEWS}
    everything = next(iter(shown.values())).pixels.sum()
    lowest = 1.0
    for name, counts in shown.items():
        bins: list[Bin] = counts.bins()
        shares = [b.pixels / everything for b in bins]
        lowest = min([lowest, *shares])
        width = [b.high - b.low for b in bins]
        axes.bar(
            [b.low for b in bins],
            shares,
            width,
            align="edge",
            color=colours[name],
            alpha=0.55,
            edgecolor="white",
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=10 ** np.floor(np.log10(lowest)), top=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("share of all pixels")
    axes.grid(alpha=0.3, axis="y")


def _draw_frames(axes: Axes, reliability: Reliability) -> None:
    """A dot a frame, coloured by its video where there are few enough to tell apart."""
    videos = sorted({frame.video for frame in reliability.frames})
    names_fit = len(videos) <= 8
    for video in videos:
        frames = [frame for frame in reliability.frames if frame.video == video]
        label, colour = (video, None) if names_fit else (None, ALL)
        axes.plot(
            [f.uncertainty for f in frames],
            [f.dice for f in frames],
            "o",
            color=colour,
            markersize=4,
            alpha=0.7,
            label=label,
        )
    if names_fit:
        axes.legend(loc="lower left", fontsize=8)
    found = reliability.to_json()["spearman_dice_uncertainty"]
    known = "" if found is None else f" (Spearman {found:.2f})"
    axes.set_title(f"Do unsure frames score lower?{known}", fontsize=10)
    axes.set(xlabel="mean of 1 - confidence over the frame", ylabel="Dice of the frame", ylim=(-0.02, 1.02))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
