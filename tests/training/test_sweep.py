"""Sweeps: a fair plan, runs that are made once whatever happens, failures that are told and do not stop the rest."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from service.errors import DataError
from tests.training.small_sweeps import write_sweep
from training.__main__ import main
from training.sweep import LOCK, PLAN, RESULTS, RUNS, _Job, describe_plan, read_results, run_sweep
from training.sweep_config import SWEEPS, check_comparable, load_sweep
from training.sweep_run import FRAMES, identify
from training.trainer import BEST, LAST

BROKEN = (
    "[recipe]",
    '[[methods]]\nname = "supervised"\nlabel = "broken"\noptions = { dice_weight = 1e300 }\n[recipe]',
)
# What depends on how and when a run was made, not on what it is.
CIRCUMSTANCES = {"seconds", "pictures_per_s", "peak_memory_bytes", "resumed_from", "commit"}


def substance(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CIRCUMSTANCES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that was made without a stop; its file lies beside its folder `out`."""
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(write_sweep(folder), folder / "out", progress=False)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)  # a sweep imports torch anew, which a busy machine makes minutes of
def test_every_run_is_measured_on_the_part_it_was_neither_trained_nor_chosen_on(whole: Path) -> None:
    lines = read_results(whole / "out")
    assert [(line["method"], Path(line["fold"]).stem) for line in lines] == [
        ("supervised", "fold_1"), ("mean_teacher", "fold_1"), ("supervised", "fold_2"), ("mean_teacher", "fold_2"),
    ]  # fmt: skip
    assert [list(line["videos"]) for line in lines] == [["train/c"], ["train/c"], ["train/a"], ["train/a"]]
    for line in lines:
        assert line["status"] == "done" and line["steps"] == 6 and line["resumed_from"] == 0
        assert line["labeled_frames"] == 2 and line["frames"] == 3
        assert line["unlabeled_frames"] == (3 if line["method"] == "mean_teacher" else 0)
        assert line["dice"] == line["videos"][next(iter(line["videos"]))]["dice"]
        assert line["seconds"] > 0 and line["pictures_per_s"] > 0 and line["peak_memory_bytes"] > 1e6


@pytest.mark.slow
def test_a_measured_run_keeps_pictures_and_no_weights(whole: Path) -> None:
    for line in read_results(whole / "out"):
        folder = whole / "out" / RUNS / line["run"]
        assert not (folder / LAST).exists() and not (folder / BEST).exists()
        assert len(list((folder / FRAMES).glob("*.jpg"))) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)  # a sweep imports torch anew, which a busy machine makes minutes of
def test_a_killed_sweep_continues_to_the_same_results_and_repeats_nothing(
    whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    second = out / RUNS / json.loads((whole / "out" / PLAN).read_text())["runs"][1]["run"]
    command = [sys.executable, "-m", "training", "sweep", str(whole / "small.toml"), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (second / LAST).exists():
            assert process.poll() is None, "the sweep ended before it could be killed"
            time.sleep(0.005)
        process.kill()
    before = read_results(out)
    assert len(before) == 1
    run_sweep(whole / "small.toml", out, progress=False)
    after = read_results(out)
    assert after[0] == before[0]
    assert after[1]["resumed_from"] > 0
    assert substance(after) == substance(read_results(whole / "out"))


@pytest.mark.slow
def test_a_failing_method_is_told_and_does_not_stop_the_others(whole: Path) -> None:
    out, finished = whole / "out", read_results(whole / "out")
    with pytest.raises(
        DataError, match=r"2 of 6 runs failed, first broken_.*loss term 'dice' is inf at step 0"
    ):
        run_sweep(write_sweep(whole, BROKEN, name="wider"), out, jobs=2, progress=False)
    lines = read_results(out)
    assert lines[:4] == finished
    assert [(line["status"], line["method"]) for line in lines[4:]] == [("failed", "broken")] * 2
    run_sweep(whole / "small.toml", out, progress=False)
    assert read_results(out) == finished


@pytest.mark.slow
def test_a_process_that_dies_without_a_word_becomes_a_failed_line(tmp_path: Path) -> None:
    run = load_sweep(write_sweep(tmp_path))[1][0]
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=os.abort)
    process.start()
    sender.close()
    line = _Job(run, 0, process, receiver).take_line()
    assert (line["run"], line["status"]) == (run.slug, "failed")
    assert "signal 6" in line["error"]


def test_a_stopped_sweep_holds_complete_sets_to_compare(tmp_path: Path) -> None:
    changes = ("shares = [0.5]", "shares = [0.5, 0.2]"), ("seeds = [0]", "seeds = [3, 4]")
    upper = ('name = "supervised"', 'name = "supervised"\nshares = [0.2, 0.5, 1.0]')
    _, runs = load_sweep(write_sweep(tmp_path, *changes, upper))
    keys = [(run.seed, run.share, Path(run.fold).stem) for run in runs]
    assert keys == sorted(keys)
    assert [run.method for run in runs[:4]] == ["supervised", "mean_teacher"] * 2
    assert [run.method for run in runs if run.share == 1.0] == ["supervised"] * 4
    assert len({run.slug for run in runs}) == len({run.recipe_hash for run in runs}) == len(runs) == 20
    for run in runs:
        assert run.recipe.seed == run.seed
        assert {(table.share, table.share_seed) for table in run.recipe.labeled} == {(run.share, run.seed)}
        assert {table.share for table in run.recipe.unlabeled} == {1.0}
        assert {t.split for t in (*run.recipe.labeled, *run.recipe.unlabeled, *run.recipe.validation)} == {
            run.fold
        }


def test_recipes_that_differ_in_more_than_they_may_are_not_compared(tmp_path: Path) -> None:
    recipes = [run.recipe for run in load_sweep(write_sweep(tmp_path))[1]]
    check_comparable(recipes)
    longer = recipes[1].model_copy(update={"steps": 7, "precision": "bfloat16"})
    with pytest.raises(DataError, match=r"supervised_.* and mean_teacher_.* differ in steps, precision\."):
        check_comparable([recipes[0], longer])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps = 6", "steps = 7"), "in .*out and .* differ in steps"),
        (
            ('"mean_teacher"', '"mean_teacher"\noptions = { ramp_steps = 5 }'),
            "holds mean_teacher_.*other options",
        ),
    ],
)
def test_a_folder_of_another_comparison_is_not_continued(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    sweep, runs = load_sweep(write_sweep(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PLAN).write_text(json.dumps(describe_plan(sweep, runs)))
    results = "".join(json.dumps({**identify(run), "status": "done"}) + "\n" for run in runs)
    (tmp_path / "out" / RESULTS).write_text(results)
    with pytest.raises(DataError, match=message):
        run_sweep(write_sweep(tmp_path, change), tmp_path / "out", progress=False)
    assert (tmp_path / "out" / RESULTS).read_text() == results


def test_two_sweeps_do_not_write_into_one_folder(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="Another sweep is running"):
            run_sweep(path, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("description", "descripton"), "unknown key 'descripton'.*Did you mean 'description'"),
        (("steps = 6", "stepps = 6"), "unknown key 'stepps'.*Did you mean 'steps'"),
        (('"mean_teacher"', '"mean_teecher"'), "no method 'mean_teecher'.*Did you mean mean_teacher"),
        (
            ('"mean_teacher"', '"mean_teacher"\noptions = { ramp_step = 1 }'),
            "'ramp_step'.*Did you mean 'ramp_steps'",
        ),
        (('"mean_teacher"', '"supervised"'), "plans supervised_.* twice"),
        (("fold_2.json", "fold_9.json"), "no split '.*fold_9.json'"),
        (("shares = [0.5]", "shares = [0.0]"), "shares.0 is 0.0"),
        (('part = "train"', 'part = "test"'), "holds the frames that the runs are tested on"),
        (('split = "the fold\'s"\npart = "train"', ""), "holds the frames that the runs are tested on"),
        (("[[recipe.unlabeled]]", "[[recipe.labeled]]"), "mean_teacher learns from unlabeled pictures"),
        (("FOLDER/data", "FOLDER/nowhere"), "There is no folder"),
        (("[recipe]", "[recipe"), "not valid TOML"),
    ],
)
def test_a_wrong_sweep_ends_with_one_clear_line(
    tmp_path: Path, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(write_sweep(tmp_path, change)), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out" / RESULTS).exists()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["no_such"], "There is no sweep"), (["x", "--jobs", "0"], "--jobs 0")]
)
def test_a_wrong_command_says_so(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_sweeps_that_ship_can_be_planned(path: Path) -> None:
    assert load_sweep(Path(path.stem))[1]
