"""The report's plots, as SVG that takes the colours and type of the page it stands in."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from training.comparison import Comparison, Line, format_share, name_fold, spread_of

# Stands for the page's text colour until the SVG is written.
INK = "#010203"
COLOURS = ("#2f86d1", "#e08a00", "#12a07a", "#c75b9b", "#8d6fd1", "#d1503f")
MARKERS = ("s", "^", "D", "v", "P", "X")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "surgseg",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


def plot_by_share(comparison: Comparison) -> str:
    """Test Dice against the share of labels: every run a dot, each method's mean and deviation."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for position, method in enumerate(comparison.methods):
            _draw_over_shares(axes, comparison, method, position, comparison.select(method=method), bars=True)
        _label_shares(axes, comparison)
        axes.set_ylabel("test Dice")

    return _render(comparison, (7.6, 3.9), draw)


def plot_differences(comparison: Comparison) -> str:
    """Every paired difference to supervised training a dot, with mean and deviation; empty without such pairs."""
    methods = [m for m in comparison.methods if any(comparison.differences(m, s) for s in comparison.shares)]
    shares = [s for s in comparison.shares if any(comparison.differences(m, s) for m in methods)]
    if not methods:
        return ""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(shares), sharex=True, sharey=True, squeeze=False)[0]
        for axes, share in zip(panels, shares, strict=True):
            axes.axvline(0, color=INK, linewidth=0.8)
            for row, method in enumerate(methods):
                differences = comparison.differences(method, share)
                spread = spread_of(differences)
                if spread is not None:
                    colour, marker = _look(comparison, method)
                    axes.plot(
                        differences, [row] * len(differences), "|", color=colour, markersize=9, alpha=0.6
                    )
                    axes.errorbar(
                        spread.mean,
                        row + 0.28,
                        xerr=spread.deviation,
                        color=colour,
                        marker=marker,
                        markersize=5,
                    )
            axes.set(title=f"{format_share(share)} of the labels", ylim=(len(methods) - 0.4, -0.6))
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(methods)), methods)
        figure.supxlabel(f"Dice minus that of {comparison.baseline}", fontsize=9)

    return _render(comparison, (7.6, 1.1 + 0.42 * len(methods)), draw, legend=False)


def plot_learning(comparison: Comparison) -> str:
    """Validation Dice by step, a panel for each share: runs thin, the mean of a method bold; empty without logs."""
    curves = {line["run"]: comparison.validation_curve(line) for line in comparison.done}
    if not any(curves.values()):
        return ""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(comparison.shares), sharex=True, sharey=True, squeeze=False)[0]
        for axes, share in zip(panels, comparison.shares, strict=True):
            for method in comparison.methods:
                lines = comparison.select(method=method, share=share)
                _draw_curves(axes, [curves[line["run"]] for line in lines], _look(comparison, method)[0])
            axes.set(title=f"{format_share(share)} of the labels", xlim=(0, None))
        panels[0].set_ylabel("validation Dice")
        figure.supxlabel("step", fontsize=9)

    return _render(comparison, (7.6, 3.2), draw)


def plot_videos(comparison: Comparison) -> str:
    """Test Dice against the share of labels, a panel for each fold: every seed a dot, each method's mean."""

    def draw(figure: Figure) -> None:
        columns = min(4, len(comparison.folds))
        rows = -(-len(comparison.folds) // columns)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        panels = list(grid.flat)
        for axes, fold in zip(panels, comparison.folds, strict=False):
            for position, method in enumerate(comparison.methods):
                lines = comparison.select(method=method, fold=fold)
                _draw_over_shares(axes, comparison, method, position, lines, bars=False)
            _label_shares(axes, comparison)
            axes.set_title(name_fold(fold, comparison))
        for axes in panels[len(comparison.folds) :]:
            axes.remove()
        for axes in grid[:, 0]:
            axes.set_ylabel("test Dice")

    rows = -(-len(comparison.folds) // 4)
    return _render(comparison, (7.6, 0.8 + 2.2 * rows), draw)


def _draw_over_shares(
    axes: Axes, comparison: Comparison, method: str, position: int, lines: Sequence[Line], bars: bool
) -> None:
    colour, marker = _look(comparison, method)
    shift = 0.09 * (
        position - (len(comparison.methods) - 1) / 2
    )  # side by side, so that marks do not hide each other
    at = {share: index + shift for index, share in enumerate(comparison.shares)}
    axes.plot(
        [at[line["share"]] for line in lines], [line["dice"] for line in lines], ".", color=colour, alpha=0.35
    )
    spreads = [
        (at[s], spread_of(line["dice"] for line in lines if line["share"] == s)) for s in comparison.shares
    ]
    known = [(x, spread) for x, spread in spreads if spread is not None]
    if known:
        places, means = [x for x, _ in known], [spread.mean for _, spread in known]
        deviations = [spread.deviation or 0 for _, spread in known] if bars else None
        axes.errorbar(
            places, means, yerr=deviations, color=colour, marker=marker, markersize=5, linewidth=1.3
        )


def _draw_curves(axes: Axes, curves: Sequence[list[tuple[int, float]]], colour: str) -> None:
    for curve in curves:
        axes.plot(
            [step for step, _ in curve], [dice for _, dice in curve], color=colour, linewidth=0.6, alpha=0.3
        )
    steps = sorted({step for curve in curves for step, _ in curve})
    means = [np.mean([dice for curve in curves for at, dice in curve if at == step]) for step in steps]
    axes.plot(steps, means, color=colour, linewidth=2)


def _label_shares(axes: Axes, comparison: Comparison) -> None:
    axes.set_xticks(range(len(comparison.shares)), [format_share(share) for share in comparison.shares])
    axes.set_xlim(-0.5, len(comparison.shares) - 0.5)
    axes.set_xlabel("share of the labels")
    axes.grid(visible=False, axis="x")


def _look(comparison: Comparison, method: str) -> tuple[str, str]:
    """Colour and marker of a method: supervised training in the colour of the text."""
    if method == comparison.baseline:
        return INK, "o"
    others = [name for name in comparison.methods if name != comparison.baseline]
    index = others.index(method)
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _render(
    comparison: Comparison, size: tuple[float, float], draw: Callable[[Figure], None], legend: bool = True
) -> str:
    """The drawing as an `<svg>` element without ids or fonts of its own."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        if legend:
            marks = [
                Line2D(
                    [],
                    [],
                    color=_look(comparison, method)[0],
                    marker=_look(comparison, method)[1],
                    label=method,
                )
                for method in comparison.methods
            ]
            figure.legend(handles=marks, loc="outside upper left", ncols=min(3, len(marks)))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    return re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
