"""Checkpoints: whole, clear about what they are not, and never code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.errors import DataError
from tests.training.small_runs import small_recipe
from training.checkpoint import load_checkpoint, normalise
from training.trainer import LAST, Trainer


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    Trainer(small_recipe(folder), folder / "run", command="surgseg-train run bars").run(
        progress=False, stop_at=1
    )
    return folder / "run" / LAST


def test_it_says_how_it_came_to_be(checkpoint_path: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_path)
    assert (checkpoint.step, checkpoint.seed, checkpoint.network) == (1, 3, "edge")
    assert checkpoint.method == "supervised"
    assert checkpoint.command == "surgseg-train run bars"
    assert len(checkpoint.split_hash) == 64
    assert [info.name for info in checkpoint.classes] == ["background", "instrument"]


def test_its_predictor_is_in_eval_mode_and_knows_its_statistics(checkpoint_path: Path) -> None:
    predictor = load_checkpoint(checkpoint_path).build_predictor()
    assert not predictor.training
    pictures = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    expected = (pictures / 255 - predictor.mean.view(3, 1, 1)) / predictor.std.view(3, 1, 1)
    torch.testing.assert_close(normalise(pictures), expected)
    with torch.inference_mode():
        assert predictor(expected).shape == (1, 2, 64, 96)


def test_a_truncated_file_is_refused(checkpoint_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(checkpoint_path.read_bytes()[:20_000])
    with pytest.raises(DataError, match="not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04}q\x00."])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a checkpoint"):
        load_checkpoint(path)


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def save_as_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def save_as_torch_once_did(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_as_plain_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [save_as_zip, save_as_torch_once_did, save_as_plain_pickle])
@pytest.mark.parametrize("where", ["everything", "recipe", "weights"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(
    save: Callable[[object, Path], None], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {
        "everything": RunsCode(),
        "recipe": {"version": 1, "recipe": RunsCode()},
        "weights": {"version": 1, "state": {"method": {"weight": RunsCode()}}},
    }
    save(contents[where], tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"evil\.pt is not a checkpoint \(it (would run|holds something)"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_the_code_of_that_file_would_run_where_nothing_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(RunsCode()))
    assert (tmp_path / "owned").exists()


def test_another_version_is_refused(checkpoint_path: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint_path, weights_only=True)
    torch.save({**content, "version": 99}, tmp_path / "future.pt")
    with pytest.raises(DataError, match="version 99"):
        load_checkpoint(tmp_path / "future.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no checkpoint .*best\.pt"):
        load_checkpoint(tmp_path / "best.pt")
