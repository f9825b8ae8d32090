"""Two processes of torchrun train exactly as one, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from service.errors import DataError
from tests.training.small_runs import small_recipe
from tests.training.two_processes import CURVES, gradients_of, recipe_of
from training.checkpoint import load_checkpoint
from training.distributed import ALONE, Processes, join_processes
from training.methods import METHODS
from training.run_log import LOG
from training.trainer import BEST, LAST, Trainer

# Two more Pythons that import torch, on a machine that may be busy; a hang of hours would still be seen.
pytestmark = pytest.mark.timeout(900)
REPOSITORY = Path(__file__).resolve().parents[2]


def run_two_processes(task: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(REPOSITORY / "tests" / "training" / "two_processes.py")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, script, task, str(folder)], env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes made: gradients of every method, and runs."""
    folder = tmp_path_factory.mktemp("compared")
    small_recipe(folder)
    finished = run_two_processes("compare", folder)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def curve_of(folder: Path, part: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    left_out = ("part", "pictures_per_s", "peak_memory_bytes")
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines if line["part"] == part]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_losses_gradients_and_statistics_of_two_processes_are_those_of_one(name: str, compared: Path) -> None:
    expected = gradients_of(name, ALONE)
    for rank in (0, 1):
        found = torch.load(compared / f"{name}-{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            # Found: 4e-15; the losses take float32 logits, of which one may round the other way. The heads are float32
            # themselves, and sum in another order with another number of threads: found 2e-7.
            is_single = value.dtype == torch.float32
            tolerance = {"rtol": 1e-3, "atol": 1e-6} if is_single else {"rtol": 1e-7, "atol": 1e-9}
            torch.testing.assert_close(
                found[key], value.detach(), **tolerance, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
def test_two_processes_give_the_loss_curve_and_weights_of_one(
    name: str, compared: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(compared, name)
    Trainer(recipe, tmp_path / "one").run(progress=False)
    for part in ("train", "validation"):
        expected, found = curve_of(tmp_path / "one", part), curve_of(compared / name, part)
        assert len(expected) == len(found) > 0
        for one, two in zip(expected, found, strict=True):
            assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    one, two = (load_checkpoint(folder / LAST).state for folder in (tmp_path / "one", compared / name))
    assert torch.equal(one["random"], two["random"])
    # Adam steps as far where a gradient is rounding noise alone, so weights agree as a whole, not each by itself
    start = dict(Trainer(recipe, tmp_path / "start").method.named_parameters())
    moved = torch.cat([(one["method"][key] - value.detach()).flatten() for key, value in start.items()])
    apart = torch.cat([(one["method"][key] - two["method"][key]).flatten() for key in start])
    assert apart.norm() < 0.1 * moved.norm()


@pytest.mark.slow
def test_two_processes_resume_as_if_they_had_never_stopped(compared: Path) -> None:
    whole, stopped = compared / "mean_teacher", compared / "stopped"
    for part in ("train", "validation"):
        assert curve_of(whole, part) == curve_of(stopped, part)
    one, other = (load_checkpoint(folder / LAST).state["method"] for folder in (whole, stopped))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.slow
def test_one_process_writes_the_folder(compared: Path) -> None:
    for name in CURVES:
        assert len(list((compared / name).glob("events.*"))) == 1
        steps = [line["step"] for line in curve_of(compared / name, "train")]
        assert steps == sorted(set(steps))
        assert (compared / name / BEST).exists()


@pytest.mark.slow
def test_an_error_of_one_process_ends_both_with_its_message_once(tmp_path: Path) -> None:
    small_recipe(tmp_path)
    finished = run_two_processes("lose_a_file", tmp_path)
    assert finished.returncode != 0
    assert finished.stderr.count("surgseg-train: 7.png is cut off. Expected a whole picture.") == 1
    assert 'File "' not in finished.stderr.split("torch/distributed")[0]


@pytest.mark.slow
def test_the_death_of_one_process_ends_the_other(tmp_path: Path) -> None:
    small_recipe(tmp_path)
    finished = run_two_processes("crash", tmp_path)
    assert finished.returncode != 0
    assert "exitcode  : 17" in finished.stderr


def test_a_batch_that_cannot_be_shared_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Set batch_size = 3"):
        Trainer(small_recipe(tmp_path, "batch_size=2"), tmp_path / "run", processes=Processes(0, 3, 0, 3))


def test_parts_of_a_batch_are_disjoint_and_whole() -> None:
    parts = [list(Processes(rank, 3).part_of(6)) for rank in range(3)]
    assert parts == [[0, 1], [2, 3], [4, 5]]


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes() as processes:
        assert processes == ALONE
        values = torch.arange(3)
        assert processes.gather(values) is values
        with pytest.raises(DataError, match="found"), processes.together():
            raise DataError("found", "expected", "remedy")
