"""What a sweep found on whole volumes: a table beside those of the slices."""

from __future__ import annotations

from training.comparison import NOTHING, Comparison, Line, Table, format_share, spread_of
from training.volume_scores import VOLUMES


def volume_table(comparison: Comparison) -> Table:
    """Dice in 3-D of each structure and in the mean, its paired difference to supervised training, HD95 and NSD.

    Means over the runs of a row; without rows where no run has volumes.
    """
    lines = [line for line in comparison.done if VOLUMES in line]
    if not lines:
        return Table(("labels",))
    structures = list(lines[0][VOLUMES]["structures"])
    base, unit = comparison.baseline, lines[0][VOLUMES]["unit"]
    paired = () if base is None else (f"Dice − {base}", "better in")
    distances = (f"HD95, {unit}", f"NSD at {lines[0][VOLUMES]['surface_tolerance']}", "missed")
    table = Table(("labels", "method", "runs", "3-D Dice", *paired, *structures, *distances))
    for share, method in comparison.cells():
        measured = [line for line in comparison.select(method=method, share=share) if VOLUMES in line]
        if measured:
            difference = () if base is None else _difference(comparison, method, share)
            row = (format_share(share), method, str(len(measured)), _spread(measured, "dice"), *difference)
            table.rows.append((*row, *_cells(measured, structures)))
    return table


def _cells(lines: list[Line], structures: list[str]) -> tuple[str, ...]:
    """Each structure's Dice, then HD95, NSD and how many structures were missed, in the mean of the runs."""
    dices = (
        spread_of(line[VOLUMES]["structures"][name]["dice"] for line in lines
                  if line[VOLUMES]["structures"][name]["dice"] is not None)
        for name in structures
    )  # fmt: skip
    missed = spread_of(sum(s["missed"] for s in line[VOLUMES]["structures"].values()) for line in lines)
    cells = [NOTHING if spread is None else f"{spread.mean:.3f}" for spread in dices]
    count = NOTHING if missed is None else f"{missed.mean:.1f}"
    return (*cells, _spread(lines, "hd95"), _spread(lines, "nsd"), count)


def _difference(comparison: Comparison, method: str, share: float) -> tuple[str, str]:
    differences = comparison.differences(method, share, lambda line: line.get(VOLUMES, {}).get("dice"))
    paired = spread_of(differences)
    if paired is None:
        return NOTHING, NOTHING
    return paired.format("{:+.3f}"), f"{sum(d > 0 for d in differences)} of {len(differences)}"


def _spread(lines: list[Line], metric: str) -> str:
    spread = spread_of(value for line in lines if (value := line[VOLUMES][metric]) is not None)
    return NOTHING if spread is None else str(spread)
