"""A drawing of `surgseg-export bench`: frames per second of each runtime by batch size."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "surgseg", "font.family": "sans-serif"}


def draw_runtimes(report: dict[str, Any]) -> str:
    """An SVG; the last place on the axis is several calls of one picture at once. Bars span the rounds."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for row in report["runtimes"]:
            rates = [
                [
                    *(each["frames_per_s"] for each in figures["batches"].values()),
                    figures["at_once"]["frames_per_s"],
                ]
                for figures in row["rounds"]
            ]
            middle = [
                *(each["frames_per_s"] for each in row["batches"].values()),
                row["at_once"]["frames_per_s"],
            ]
            below = [
                value - min(column) for value, column in zip(middle, zip(*rates, strict=True), strict=True)
            ]
            above = [
                max(column) - value for value, column in zip(middle, zip(*rates, strict=True), strict=True)
            ]
            label = f"{row['backend']} {row['precision']}"
            axes.errorbar(range(len(middle)), middle, [below, above], marker="o", capsize=3, label=label)
        first = report["runtimes"][0]
        names = [*(f"batch {size}" for size in first["batches"]), f"{first['at_once']['calls']} at once"]
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("frames per second")
        width, height = report["input"]
        axes.set_title(f"{report['bundle']}, {width} x {height}")
        axes.legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
