"""A measurement over time as one SVG: latency, frames, processor, memory. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_WIDTH, _PANEL_HEIGHT = 760, 150
_LEFT, _RIGHT, _TOP, _GAP = 64, 150, 40, 34
_COLOURS = ("#2f86d1", "#e08a00", "#12a07a", "#c75b9b", "#8d6fd1", "#d1503f", "#6b7d2a", "#777777")
_TICKS = 4

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: x in seconds, y in the panel's unit; points that are not finite are left out."""

    name: str
    points: Points


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over the same time; `title` names the quantity and its unit."""

    title: str
    lines: tuple[Line, ...]


def plot_runs(title: str, phases: Sequence[dict[str, Any]]) -> str:
    """The SVG of what `measure_streams` gives, phases and rounds in each panel together."""
    runs = [
        (phase["name"] + (f" {number}" if len(phase["runs"]) > 1 else ""), run)
        for phase in phases
        for number, run in enumerate(phase["runs"], 1)
    ]
    latency = tuple(
        Line(f"{name} {rank}", [(window["from_s"], window[f"{rank}_ms"]) for window in run["windows"]])
        for name, run in runs
        for rank in ("p50", "p99")
    )
    rates = tuple(
        Line(name, [(window["from_s"], window["fps_answered"]) for window in run["windows"]])
        for name, run in runs
    )
    cores = tuple(
        Line(f"{name} {side}", [(entry["at_s"], entry[f"{side}_cores"]) for entry in run["usage"]["series"]])
        for name, run in runs
        for side in ("service", "client")
    )
    memory = tuple(
        Line(name, [(entry["at_s"], entry["service_mib"]) for entry in run["usage"]["series"]])
        for name, run in runs
    )
    return draw(
        title,
        [
            Panel("arrival to encoded, ms", latency),
            Panel("frames answered a second", rates),
            Panel("processor, cores", cores),
            Panel("memory of the service and its decoders, MiB", memory),
        ],
    )


def draw(title: str, panels: Sequence[Panel]) -> str:
    """Panels below each other on one time axis; every y axis begins at 0."""
    end_s = max((x for panel in panels for line in panel.lines for x, _ in line.points), default=1.0) or 1.0
    height = _TOP + len(panels) * (_PANEL_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="11" fill="#333"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for index, panel in enumerate(panels):
        parts += _draw_panel(panel, _TOP + index * (_PANEL_HEIGHT + _GAP), end_s)
    return "\n".join([*parts, "</svg>"]) + "\n"


def choose_top(highest: float) -> float:
    """The round number at or above the highest value, where an axis may end: 1, 2 or 5 times a power of ten."""
    if not highest > 0 or math.isinf(highest):
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= highest * (1 - 1e-9))


def _draw_panel(panel: Panel, top: int, end_s: float) -> list[str]:
    values = [y for line in panel.lines for _, y in line.points if math.isfinite(y)]
    highest = choose_top(max(values, default=0.0))
    right, bottom = _WIDTH - _RIGHT, top + _PANEL_HEIGHT
    parts = [f'<text x="{_LEFT}" y="{top - 6}" font-weight="bold">{escape(panel.title)}</text>']
    for tick in range(_TICKS + 1):
        x, y = _LEFT + (right - _LEFT) * tick / _TICKS, bottom - _PANEL_HEIGHT * tick / _TICKS
        parts += [
            f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#ddd"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{highest * tick / _TICKS:g}</text>',
            f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{end_s * tick / _TICKS:.3g} s</text>',
        ]
    for index, line in enumerate(panel.lines):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(
            f"{_LEFT + (right - _LEFT) * x / end_s:.1f},{bottom - _PANEL_HEIGHT * y / highest:.1f}"
            for x, y in line.points
            if math.isfinite(y)
        )
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            f'<text x="{right + 8}" y="{top + 10 + 13 * index}" fill="{colour}">{escape(line.name)}</text>',
        ]
    return parts
