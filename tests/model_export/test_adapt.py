"""The closed loop, from labeled and unlabeled frames of a site to a checked bundle, and everything that may stop it."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.__main__ import main
from model_export.adapt_data import hold_out, parse_data
from model_export.adapt_training import make_supervised
from service.backends import open_backend
from service.contract.bundle import open_bundle
from service.errors import BundleError, DataError
from tests.model_export.small_site import arguments_for, write_site
from training.checkpoint import load_checkpoint
from training.data.samples import Sample
from training.methods.mean_teacher import MeanTeacher

pytestmark = pytest.mark.timeout(600)  # a loop trains twice and exports


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@dataclass
class Adapted:
    """A site that was adapted to, with --test and --compare."""

    site: Path
    output: list[str]

    @property
    def report(self) -> dict:
        return json.loads((self.site / "bundle-work" / "report.json").read_text())


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    site = write_site(tmp_path_factory.mktemp("site"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        tested = ["--test", str(site / "test"), "--compare", "--licence", "CC BY 4.0", "--name", "our-site"]
        assert main(arguments_for(site, *tested)) == 0
    return Adapted(site, printed.getvalue().splitlines())


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The same site before anything was trained on it."""
    return write_site(tmp_path / "site")


@pytest.mark.slow
def test_the_bundle_opens_in_the_service_and_gives_its_golden_mask(adapted: Adapted) -> None:
    bundle = open_bundle(adapted.site / "bundle")
    backend = open_backend("onnxruntime-cpu", bundle)
    try:
        mask_hw = backend.segment(bundle.golden_image_hwc[None])[0]
    finally:
        backend.close()
    assert np.mean(mask_hw == bundle.golden_mask_hw) >= 0.999
    assert adapted.output[-1] == f"serve      surgseg serve --bundle {adapted.site / 'bundle'}"
    assert [line.split()[1] for line in adapted.output if line.startswith("checked")] == [
        "hashes",
        "card",
        "graph",
        "golden",
        "parity",
    ]


@pytest.mark.slow
def test_the_card_says_what_it_learned_from_and_what_was_measured(adapted: Adapted) -> None:
    card = open_bundle(adapted.site / "bundle").card
    assert (card.name, card.licence) == ("our-site", "CC BY 4.0")
    assert [(source.name, source.frames, source.licence) for source in card.training_data] == [
        ("labeled", 12, "CC BY 4.0"),
        ("unlabeled", 4, "CC BY 4.0"),
    ]
    measured = adapted.report["runs"]["adapted"]["test"]["overall"]["dice"]["mean"]
    assert [(metric.frames, metric.dice) for metric in card.metrics] == [(3, pytest.approx(measured))]


@pytest.mark.slow
def test_the_last_quarter_is_never_learned_from_and_black_frames_are_left_out(adapted: Adapted) -> None:
    labeled, unlabeled = adapted.report["labeled"], adapted.report["unlabeled"]
    assert labeled["held_out"] == ["frames/9", "frames/10", "frames/11"]
    assert labeled["learned"] == [f"frames/{number}" for number in range(9)]
    recipe = load_checkpoint(adapted.site / "bundle-work" / "adapted" / "best.pt").recipe
    assert (recipe.labeled[0].part, recipe.validation[0].part) == ("learned", "held_out")
    assert unlabeled[0]["frames"] == 4
    assert unlabeled[0]["screened"].endswith("left out: 1 black")


@pytest.mark.slow
def test_the_rival_differs_in_nothing_but_the_unlabeled_frames(adapted: Adapted) -> None:
    work = adapted.site / "bundle-work"
    ours, theirs = (load_checkpoint(work / run / "last.pt").recipe for run in ("adapted", "supervised"))
    assert theirs.method_options["average_decay"] == ours.method_options["average_decay"] == 0.9
    assert make_supervised(ours) == theirs
    assert theirs.model_copy(update={"method": ours.method, "unlabeled": ours.unlabeled}) == ours
    runs = adapted.report["runs"]
    means = [runs[run]["test"]["overall"]["dice"]["mean"] for run in ("adapted", "supervised")]
    assert adapted.report["gain"] == pytest.approx(means[0] - means[1])


@pytest.mark.slow
def test_an_interrupted_loop_continues_as_if_never_stopped_and_a_failed_export_keeps_the_run(
    adapted: Adapted, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(method: MeanTeacher, step: int) -> None:
        method.teacher.update(method.network)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MeanTeacher, "after_step", stop)
        assert main(arguments_for(site)) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert load_checkpoint(site / "bundle-work" / "adapted" / "last.pt").step == 4
    assert not (site / "bundle").exists()

    def fail(*_: object) -> None:
        raise BundleError("The exporter stopped.", "a graph", "Try again.")

    monkeypatch.setattr("model_export.adapt_command.write_bundle", fail)
    assert main(arguments_for(site)) == 2
    assert "surgseg-export: The exporter stopped." in capsys.readouterr().err
    report = json.loads((site / "bundle-work" / "report.json").read_text())
    assert report["runs"]["adapted"]["steps"] == 6
    assert "bundle" not in report
    whole, parts = (
        load_checkpoint(root / "bundle-work" / "adapted" / "last.pt").state["method"]
        for root in (adapted.site, site)
    )
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_keeps_what_there_was(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        assert main(arguments_for(site)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "last.pt cannot be written" in capsys.readouterr().err
    assert list((site / "bundle-work" / "adapted").glob("*.p*t*")) == []


def test_too_little_room_is_noticed_before_training(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(site)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(arguments_for(site)) == 2
    assert "has 10 MB left" in capsys.readouterr().err


@pytest.mark.slow
def test_a_work_folder_of_another_run_is_not_continued(
    adapted: Adapted, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = adapted.site / "bundle-work"
    assert main(arguments_for(site, "--work", str(work), "--set", "seed=9")) == 2
    message = capsys.readouterr().err
    assert "recipe differs" in message
    assert "--work" in message


def samples_of(**frames: int) -> Iterator[Sample]:
    for video, count in frames.items():
        for number in reversed(range(1, count + 1)):
            yield Sample(f"{video}/frame_{number}", video, lambda: np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("frames", "held_out"),
    [
        ({"a": 20}, ["a/frame_16", "a/frame_17", "a/frame_18", "a/frame_19", "a/frame_20"]),
        ({"a": 8, "b": 5}, ["a/frame_7", "a/frame_8", "b/frame_5"]),
        ({"a": 5}, ["a/frame_3", "a/frame_4", "a/frame_5"]),
        ({"a": 1, "b": 1, "c": 1, "d": 1, "e": 2}, ["a/frame_1", "b/frame_1", "e/frame_2"]),
    ],
)
def test_the_latest_frames_of_each_video_are_held_out(frames: dict[str, int], held_out: list[str]) -> None:
    samples = list(samples_of(**frames))
    learned, chosen = hold_out(samples)
    assert [sample.sample_id for sample in chosen] == held_out
    assert {s.sample_id for s in learned} == {s.sample_id for s in samples} - set(held_out)


def test_data_are_named_by_path_or_reader_with_keys_behind(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    (tmp_path / "frames" / "image").mkdir(parents=True)
    assert parse_data(str(tmp_path / "a:b"), "video").source == f"video:{tmp_path}/a:b"
    assert parse_data(str(tmp_path / "frames"), "video").source == f"folder:{tmp_path}/frames"
    data = parse_data("intermountain:x,y/z,weight=2,aspect=[1.2, 1.8],part=train", "video", screen=True)
    assert (data.source, data.weight, data.aspect) == ("intermountain:x,y/z", 2.0, (1.2, 1.8))
    assert (data.part, data.screen) == ("train", True)
    with pytest.raises(DataError, match="weight"):
        parse_data("folder:x,weight=-1", "video")
