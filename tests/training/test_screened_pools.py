"""Screening as a key of a recipe's unlabeled data."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from service.errors import DataError
from tests.training.small_runs import small_recipe
from tests.training.test_screening import make_tissue
from training.config import DataConfig
from training.data.batches import open_pools
from training.distributed import Processes
from training.trainer import Trainer


def test_a_recipe_screens_its_unlabeled_frames_and_refuses_a_pool_of_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "tissue.png"), make_tissue()[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((90, 160, 3), np.uint8))
    config = DataConfig(source=f"video:{tmp_path}", screen=True)
    (pool,) = open_pools([config], labeled=False)
    assert [sample.sample_id.rpartition("/")[2] for sample in pool.samples] == ["tissue"]
    assert "1 of 2 frames kept; left out: 1 black" in capsys.readouterr().out
    (tmp_path / "tissue.png").unlink()
    with pytest.raises(DataError, match="leaves no frame"):
        open_pools([config], labeled=False)


def test_of_the_processes_of_a_run_only_the_first_says_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pool").mkdir()
    cv2.imwrite(str(tmp_path / "pool" / "tissue.png"), make_tissue()[:, :, ::-1])
    unlabeled = f'unlabeled=[{{ source = "video:{tmp_path / "pool"}", screen = true }}]'
    recipe = small_recipe(tmp_path, "method.name=mean_teacher", unlabeled)
    for rank in (0, 1):
        Trainer(recipe, tmp_path / "run", processes=Processes(rank, 2))
        assert capsys.readouterr().out.count("1 of 1 frames kept") == (1 if rank == 0 else 0)
