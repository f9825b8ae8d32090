"""The throughput comparison: both loops train, take turns, and are counted alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.errors import DataError
from tests.training.small_runs import small_recipe
from training import throughput
from training.__main__ import main
from training.config import Recipe
from training.data.batches import open_pools
from training.throughput import OurLoop, measure
from training.throughput_command import to_table
from training.throughput_reference import ReleasedLoop, strong_augmentation


def mms_recipe(folder: Path, *overrides: str) -> Recipe:
    return small_recipe(
        folder,
        'method.name="min_max_similarity"',
        'network.options={ encoder = "test_efficientnet", width = 16 }',
        f'unlabeled=[{{ source = "folder:{folder / "data"}" }}]',
        "unlabeled_batch_size=1",
        *overrides,
    )


def test_the_released_loop_updates_both_networks_and_no_head(tmp_path: Path) -> None:
    recipe = mms_recipe(tmp_path)
    samples = open_pools(recipe.labeled)[0].samples
    loop = ReleasedLoop(recipe, samples, samples, torch.device("cpu"))
    networks = [[p.clone() for p in network.parameters()] for network in loop._networks]
    heads = [[p.clone() for p in head.parameters()] for head in (*loop._classifiers, *loop._projectors)]
    assert loop.advance() > 0
    for before, network in zip(networks, loop._networks, strict=True):
        assert any(not torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    for before, head in zip(heads, (*loop._classifiers, *loop._projectors), strict=True):
        assert all(torch.equal(*pair) for pair in zip(before, head.parameters(), strict=True))


def test_its_augmentation_keeps_the_size_and_covers_a_grid() -> None:
    white = Image.fromarray(np.full((128, 160, 3), 255, np.uint8))
    changed = np.array(strong_augmentation()(white))
    assert changed.shape == (128, 160, 3)
    assert (changed == 0).all(axis=2).mean() > 0.1


def test_our_loop_trains_a_step_at_a_time_and_counts_its_pictures(tmp_path: Path) -> None:
    loop = OurLoop(mms_recipe(tmp_path, "accumulate=2"), tmp_path / "run")
    before = [p.clone() for p in loop.method.first.parameters()]
    loop.advance()
    assert loop.step == 1
    assert any(not torch.equal(*pair) for pair in zip(before, loop.method.first.parameters(), strict=True))
    assert (loop.pictures_per_step, loop.passes_per_step) == (6, 8)  # 2 x (2 + 1), and unlabeled ones twice


def test_a_turn_counts_the_pictures_of_its_timed_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, counted = mms_recipe(tmp_path), {"ours": 6, "as released": 6}  # 2 x (2 + 1) and 2 x 3
    monkeypatch.setattr(throughput, "_opened", {})
    turns = {}
    for name in throughput.LOOPS:
        throughput._open(name, recipe, tmp_path / "run")
        turns[name] = [throughput._take_turn(name, steps=2, warmup=1)]
        assert turns[name][0].pictures == counted[name]
    result = throughput._summarise(recipe, turns)
    ours, released = (turns[name][0] for name in throughput.LOOPS)
    assert result["times_faster"] == pytest.approx(released.seconds / ours.seconds)
    assert "as released" in to_table(result)


@pytest.mark.slow  # two more processes import torch
@pytest.mark.timeout(900)
def test_the_command_measures_both_loops_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = mms_recipe(tmp_path)
    path = tmp_path / "bars.toml"
    options = [
        'method.name="min_max_similarity"',
        'network.options={ encoder = "test_efficientnet", width = 16 }',
        f'unlabeled=[{{ source = "folder:{tmp_path / "data"}" }}]',
        "unlabeled_batch_size=1",
    ]
    sets = [part for option in options for part in ("--set", option)]
    command = ["throughput", str(path), *sets, "--steps", "1", "--rounds", "2", "--warmup", "1"]
    assert main([*command, "--json", str(tmp_path / "speed.json")]) == 0
    printed = capsys.readouterr().out
    assert "as released" in printed and "times as many pictures" in printed
    result = json.loads((tmp_path / "speed.json").read_text())
    loops = result["loops"]
    assert set(loops) == {"ours", "as released"}
    for loop in loops.values():
        assert len(loop["pictures_per_s_turns"]) == 2
        assert loop["pictures_per_s"] > 0 and loop["peak_memory_bytes"] > 2**20
    assert result["times_faster"] == loops["ours"]["pictures_per_s"] / loops["as released"]["pictures_per_s"]
    assert result["recipe"]["network"] == recipe.network.model_dump()


def test_a_recipe_of_another_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="trains supervised"):
        measure(small_recipe(tmp_path), steps=1, rounds=1, warmup=1)
