"""The report: figures are those of the results, gaps are in plain sight, nothing is loaded from elsewhere."""

from __future__ import annotations

import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.training.small_sweeps import write_sweep
from training.__main__ import main
from training.comparison import read_comparison
from training.report import make_page
from training.sweep import PLAN, RESULTS, RUNS, describe_plan
from training.sweep_config import PlannedRun, load_sweep
from training.sweep_run import FRAMES, describe_failure, identify

# Test Dice by method, fold and seed; supervised at every label too. The last run of mean_teacher is missing.
DICES = {
    ("supervised", 0.5): {("fold_1", 0): 0.60, ("fold_1", 1): 0.64, ("fold_2", 0): 0.80, ("fold_2", 1): 0.82},
    ("mean_teacher", 0.5): {("fold_1", 0): 0.66, ("fold_1", 1): 0.63, ("fold_2", 0): 0.85},
    ("supervised", 1.0): {("fold_1", 0): 0.90, ("fold_1", 1): 0.91, ("fold_2", 0): 0.92, ("fold_2", 1): 0.93},
}
CHANGES = (
    ("seeds = [0]", "seeds = [0, 1]"),
    ('name = "supervised"', 'name = "supervised"\nshares = [0.5, 1.0]'),
)


class Tables(HTMLParser):
    """The text of every cell of every table of a page, and every place it would load something from."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self._cell: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for key, value in attrs if key in {"src", "href", "xlink:href", "data"}]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self._cell = []

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self.tables[-1][-1].append("".join(self._cell or []))
            self._cell = None

    def rows_of(self, *header: str) -> dict[tuple[str, str], list[str]]:
        """The rows of the table that starts with these columns, by their first two cells."""
        table = next(table for table in self.tables if tuple(table[0][: len(header)]) == header)
        return {(row[0], row[1]): row[2:] for row in table[1:]}


def line_of(run: PlannedRun, dice: float) -> dict[str, object]:
    figures = {"frames": 3, "dice": dice, "iou": dice / (2 - dice), "nsd": dice - 0.1}
    return {
        **identify(run), "status": "done", "steps": 6, "labeled_frames": 2, "unlabeled_frames": 0, "best_step": 3,
        "validation_dice": dice, **figures, "videos": {f"video of {Path(run.fold).stem}": figures},
        "views": {"first": dice - 0.02, "mean": dice} if run.method == "mean_teacher" else {},
        "seconds": 120.0, "resumed_from": 0, "pictures_per_s": 10.0, "peak_memory_bytes": 500_000_000,
        "machine": "2 × processor", "commit": "0123456789abcdef",
    }  # fmt: skip


def write_results(folder: Path, *changes: tuple[str, str]) -> Path:
    """A sweep's folder with the lines and logs of runs that were never made: it is the report that is tested."""
    sweep, runs = load_sweep(write_sweep(folder, *CHANGES, *changes))
    out = folder / "out"
    out.mkdir()
    (out / PLAN).write_text(json.dumps(describe_plan(sweep, runs)))
    lines = []
    for run in runs:
        dices = DICES.get((str(run.recipe.method["name"]), run.share), {})
        dice = dices.get((Path(run.fold).stem, run.seed))
        if dice is not None:
            lines.append(line_of(run, dice))
            (out / RUNS / run.slug).mkdir(parents=True)
            log = [{"step": step, "part": "validation", "dice": dice * step / 6} for step in (3, 6)]
            (out / RUNS / run.slug / "log.jsonl").write_text(
                "".join(json.dumps(entry) + "\n" for entry in log)
            )
    (out / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def make(folder: Path, *options: str) -> tuple[Tables, str]:
    assert main(["report", str(folder), "--out", str(folder / "page.html"), *options]) == 0
    page = (folder / "page.html").read_text(encoding="utf-8")
    return Tables(page), page


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def test_the_tables_hold_the_means_and_spreads_of_the_results(tmp_path: Path) -> None:
    tables, _ = make(write_results(tmp_path))
    overall = tables.rows_of("labels", "method", "runs", "Dice", "IoU", "NSD", "seed spread")
    for (method, share), dices in DICES.items():
        values = list(dices.values())
        row = overall[f"{100 * share:g} %", method]
        assert row[:2] == [str(len(values)), spread(values)]
        assert row[2] == spread([dice / (2 - dice) for dice in values])
        assert row[3] == spread([dice - 0.1 for dice in values])
    folds = tables.rows_of("labels", "method", "video of fold_1", "video of fold_2")
    assert folds["50 %", "mean_teacher"] == [spread([0.66, 0.63]), "0.850"]
    views = tables.rows_of("labels", "method", "first", "mean")
    assert views["50 %", "mean_teacher"][0] == spread([0.64, 0.61, 0.83])
    assert tables.rows_of("method", "runs")["supervised", "8"] == ["2.0", "10.0", "500"]


def test_the_seed_spread_is_that_within_a_fold(tmp_path: Path) -> None:
    tables, _ = make(write_results(tmp_path))
    within = [statistics.variance(pair) for pair in ([0.60, 0.64], [0.80, 0.82])]
    row = tables.rows_of("labels", "method", "runs")["50 %", "supervised"]
    assert row[4] == f"{statistics.mean(within) ** 0.5:.3f}"


def test_differences_are_between_runs_of_equal_labels_fold_and_seed(tmp_path: Path) -> None:
    tables, _ = make(write_results(tmp_path))
    rows = tables.rows_of("labels", "method", "runs")
    pairs = [0.66 - 0.60, 0.63 - 0.64, 0.85 - 0.80]  # the supervised run of the missing one does not count
    assert rows["50 %", "mean_teacher"][-2:] == ["+" + spread(pairs), "2 of 3"]
    assert rows["50 %", "supervised"][-2:] == ["–", "–"]


def test_failed_and_missing_runs_are_in_plain_sight(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    run = load_sweep(tmp_path / "small.toml")[1][0]
    lines = [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]
    lines[0] = describe_failure(run, "The loss <dice> is nan.\nAnd more.")
    (out / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, page = make(out)
    first_section = page[: page.index("<h2>")]
    assert "not complete: 1 failed, 1 missing" in first_section
    assert f"failed: {run.slug}: The loss &lt;dice&gt; is nan.<" in first_section
    assert "missing: mean_teacher, 50 %: fold_2 seed 1" in first_section


def test_a_complete_comparison_says_nothing_of_gaps(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    last = read_comparison(out).missing[0]["run"]
    run = next(run for run in load_sweep(tmp_path / "small.toml")[1] if run.slug == last)
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps(line_of(run, 0.8)) + "\n")
    assert "not complete" not in make(out)[1]


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    name = '<img src="http://x.test/a.png">$&amp;'
    change = ('name = "mean_teacher"', f"name = \"mean_teacher\"\nlabel = '{name}'")
    tables, page = make(
        write_results(tmp_path, change, ('"bars"', '"<script>alert(1)</script>"')), "--no-frames"
    )
    assert ("50 %", name) in tables.rows_of("labels", "method", "runs")
    assert "img" not in tables.tags and "script" not in tables.tags
    assert "&lt;script&gt;" in page


def test_the_page_loads_nothing_and_names_no_place_of_this_machine(tmp_path: Path) -> None:
    tables, page = make(write_results(tmp_path))
    assert [place for place in tables.loads if not place.startswith(("#", "data:"))] == []
    assert not re.search(r"url\((?!#)|@import", page)
    assert str(tmp_path) not in page
    assert tables.tags.count("svg") == 4
    assert make_page(read_comparison(tmp_path / "out"), frames=True) == page


def test_frames_are_shown_unless_they_may_not_be(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    run = read_comparison(out).select(method="supervised", share=0.5)[0]["run"]
    (out / RUNS / run / FRAMES).mkdir()
    for dice in ("0.100", "0.400", "0.900"):
        picture = np.full((40, 60, 3), 128, np.uint8)
        cv2.imwrite(str(out / RUNS / run / FRAMES / f"{dice}_c_{dice[2]}.jpg"), picture)
    tables, page = make(out)
    assert tables.tags.count("img") == 3
    assert page.index("c_1, Dice 0.100") < page.index("c_9, Dice 0.900")
    assert make(out, "--no-frames")[0].tags.count("img") == 0


def test_the_markdown_holds_the_same_tables(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    tables, _ = make(out, "--markdown", str(tmp_path / "docs" / "tables.md"))
    text = (tmp_path / "docs" / "tables.md").read_text(encoding="utf-8")
    row = tables.rows_of("labels", "method", "runs")["50 %", "mean_teacher"]
    assert "| " + " | ".join(["50 %", "mean_teacher", *row]) + " |" in text
    assert "- **missing**: mean_teacher, 50 %: fold_2 seed 1" in text


def test_a_curve_is_read_from_the_log_of_a_run_that_was_killed_and_resumed(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    line = read_comparison(out).done[0]
    entries = [{"step": 3, "part": "validation", "dice": 0.1}, {"step": 3, "part": "validation", "dice": 0.2}]
    log = '{"step": 1, "part": "tr' + "\n" + "".join(json.dumps(entry) + "\n" for entry in entries)
    (out / RUNS / line["run"] / "log.jsonl").write_text(log)
    assert read_comparison(out).validation_curve(line) == [(3, 0.2)]


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_folder_that_holds_no_results_is_refused(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / PLAN).write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
