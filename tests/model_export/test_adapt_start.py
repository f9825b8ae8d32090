"""The closed loop that starts from a bundle: what is served now is where training begins."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from model_export.__main__ import main
from model_export.adapt_start import STARTED, open_start
from model_export.parity import backend_predict, measure_agreement
from model_export.pictures import draw_pictures
from model_export.reference import reference_predict
from service.backends import open_backend
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import Bundle, open_bundle
from service.contract.model_card import InputSize
from tests.model_export.small_site import arguments_for, write_site
from tests.model_export.strange_bundle import (
    CLASSES,
    NETWORK,
    SIZE,
    SOURCE,
    make_checkpoint,
    write_strange_bundle,
)
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import NetworkConfig, Recipe, load_recipe
from training.evaluate import evaluate_samples
from training.trainer import Trainer

pytestmark = pytest.mark.timeout(600)  # a loop trains twice and exports twice


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_strange_bundle(tmp_path_factory.mktemp("bundles") / "served", classes=2)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path / "site")


@dataclass
class Adapted:
    """A site that was adapted to from `served`, with --test and --compare."""

    work: Path
    bundle: Bundle

    @property
    def report(self) -> dict:
        return json.loads((self.work / "report.json").read_text())

    def recipe(self, run: str) -> Recipe:
        return load_checkpoint(self.work / run / "last.pt").recipe


@pytest.fixture(scope="module")
def adapted(served: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    site = write_site(tmp_path_factory.mktemp("site"))
    more = ["--start", str(served.folder), "--test", str(site / "test"), "--compare"]
    assert main(arguments_for(site, *more)) == 0
    return Adapted(site / "bundle-work", open_bundle(site / "bundle"))


@pytest.mark.slow
def test_both_runs_start_from_the_network_and_the_size_that_are_served(
    adapted: Adapted, served: Bundle
) -> None:
    for run in ("adapted", "supervised"):
        recipe = adapted.recipe(run)
        assert recipe.init_from == str(adapted.work / STARTED)
        assert (recipe.network, recipe.input_size, recipe.classes) == (NETWORK, SIZE, served.card.classes)
        assert served.model_hash[:12] in recipe.description
    assert adapted.recipe("supervised").unlabeled == ()
    assert adapted.bundle.card.input_size == SIZE


@pytest.mark.slow
def test_the_start_is_a_checkpoint_that_labels_as_the_bundle(adapted: Adapted, served: Bundle) -> None:
    checkpoint = load_checkpoint(adapted.work / STARTED)
    assert (checkpoint.method, checkpoint.step, checkpoint.data_sources) == ("supervised", 7, (SOURCE,))
    backend = open_backend("onnxruntime-cpu", served)
    reference = reference_predict(checkpoint.build_predictor())
    agreement = measure_agreement(reference, backend_predict(backend, served.card), draw_pictures(SIZE, 3))
    backend.close()
    assert agreement.labels_equal >= 0.999


@pytest.mark.slow
def test_before_the_first_step_it_is_as_good_as_the_bundle(
    adapted: Adapted, served: Bundle, tmp_path: Path
) -> None:
    trainer = Trainer(adapted.recipe("adapted"), tmp_path / "run")
    samples = [sample for pool in trainer.validation_pools for sample in pool.samples]
    backend = open_backend("onnxruntime-cpu", served)
    ours = evaluate_samples(backend.segment, samples, SIZE, "letterbox", surfaces=False, progress=False)
    backend.close()
    assert len(samples) == 3
    assert 0 < ours.mean_dice < 1
    start = adapted.report["start"]
    assert trainer.validate().mean_dice == pytest.approx(ours.mean_dice, abs=2e-3)
    assert start["held_out_dice"] == pytest.approx(ours.mean_dice, abs=2e-3)
    assert start["test"]["frames"] == 3


@pytest.mark.slow
def test_the_card_says_what_it_started_from_and_what_that_had_learned_from(
    adapted: Adapted, served: Bundle
) -> None:
    card = adapted.bundle.card
    assert [source.name for source in card.training_data] == ["drawn", "labeled", "unlabeled"]
    assert any(f"strange 0.1.0 (model {served.model_hash[:12]})" in limit for limit in card.limits)
    assert card.network_options == NETWORK.options


def stop_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))


def test_the_bundle_that_ships_can_be_started_from(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_before_training(monkeypatch)
    assert main(arguments_for(site, "--start", str(DEFAULT_BUNDLE))) == 2
    printed = capsys.readouterr()
    assert "MB left" in printed.err
    assert "start      surgseg-edge 0.3.0" in printed.out
    started = load_checkpoint(site / "bundle-work" / STARTED)
    assert started.recipe.input_size == open_bundle(DEFAULT_BUNDLE).card.input_size
    assert f"Dice {started.validation_dice:.3f} on the held-out frames" in printed.out


def test_of_a_bundle_with_other_classes_all_but_the_last_layer_is_started_from(
    site: Path, served: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_before_training(monkeypatch)
    classes = ", ".join(f'{{id={info.id}, name="{info.name}", colour=[0, 0, 0]}}' for info in CLASSES)
    more = ["--start", str(served.folder), "--test", str(site / "test"), "--set", f"classes=[{classes}]"]
    assert main(arguments_for(site, *more)) == 2
    printed = capsys.readouterr().out
    assert "without its last layer: it has 2 classes" in printed
    count = len(load_checkpoint(site / "bundle-work" / STARTED).state["method"])
    assert f"{count - 2} of {count} tensors start from" in printed


def test_what_the_command_line_sets_goes_before_what_the_bundle_has(served: Bundle, site: Path) -> None:
    start = open_start(served.folder, site / "work", NetworkConfig())
    recipe = load_recipe(site / "small.toml")
    assert start.apply(recipe, ()).input_size == SIZE
    assert start.apply(recipe, {"steps"}).input_size == SIZE
    kept = start.apply(recipe, {"input_size"})
    assert (kept.input_size, kept.network) == (InputSize(height=64, width=96), NETWORK)
    listing = ", ".join(f'{{id={n}, name="{name}", colour=[0, 0, 0]}}' for n, name in enumerate("ab"))
    named = load_recipe(site / "small.toml", [f"classes=[{listing}]"])
    assert [info.name for info in start.apply(named, ()).classes] == ["a", "b"]


def test_of_a_checkpoint_only_the_network_is_taken(site: Path) -> None:
    path = site / "best.pt"
    save_checkpoint(make_checkpoint({"name": "supervised"}, CLASSES), path)
    start, recipe = open_start(path, site / "work", NetworkConfig()), load_recipe(site / "small.toml")
    expected = recipe.model_copy(update={"init_from": str(path), "network": NETWORK})
    assert start.apply(recipe, ()) == expected
    assert start.sources == (SOURCE,)


def test_with_a_start_the_recipe_is_one_that_lets_it_survive(
    site: Path, served: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def load(recipe: Path, *_: object) -> Recipe:
        asked.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("model_export.adapt_command.load_adaptation", load)
    bare = ["adapt", "--labeled", "a", "--unlabeled", "b", "--out", str(site / "bundle")]
    for more in ([], ["--start", str(served.folder)], ["--start", "x", "--recipe", "adapt"]):
        assert main([*bare, *more]) == 130
    assert asked == [Path("adapt"), Path("adapt_from_start"), Path("adapt")]
    rates = [load_recipe(path).optimizer.learning_rate for path in asked[:2]]
    assert rates[1] <= rates[0] / 3
