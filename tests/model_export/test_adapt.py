"""The closed loop, from labeled and unlabeled frames of a site to a checked bundle, and everything that may stop it."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from model_export.__main__ import main
from model_export.adapt_data import hold_out, parse_data
from model_export.adapt_training import make_supervised
from model_export.pictures import draw_pictures
from service.backends import open_backend
from service.contract.bundle import open_bundle
from service.contract.model_card import InputSize
from service.errors import BundleError, DataError
from tests.training.small_runs import RECIPE, write_bars
from training.checkpoint import load_checkpoint
from training.data.samples import Sample
from training.methods.mean_teacher import MeanTeacher

pytestmark = pytest.mark.timeout(600)  # a loop trains twice and exports

SIZE = InputSize(height=64, width=96)
METHOD = '\n[method]\nname = "mean_teacher"\naverage_decay = 0.9\nramp_steps = 0\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_pictures(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for number, image_hwc in enumerate(draw_pictures(SIZE, count, seed)):
        cv2.imwrite(str(folder / f"{number}.png"), image_hwc[:, :, ::-1])


def write_site(folder: Path) -> Path:
    """Twelve labeled frames in image/ and mask/, four unlabeled ones and a black one, and a test set."""
    write_bars(folder / "bars", 12)
    (folder / "bars" / "train").rename(folder / "labeled")
    write_pictures(folder / "unlabeled", 4, seed=50)
    cv2.imwrite(str(folder / "unlabeled" / "black.png"), np.zeros((64, 96, 3), np.uint8))
    for part in ("image", "mask"):
        (folder / "test" / part).mkdir(parents=True)
    for number, image_hwc in enumerate(draw_pictures(SIZE, 3, seed=90)):
        mask_hw = np.where(np.ptp(image_hwc, axis=2) < 12, 255, 0).astype(np.uint8)
        cv2.imwrite(str(folder / "test" / "image" / f"{number}.png"), image_hwc[:, :, ::-1])
        cv2.imwrite(str(folder / "test" / "mask" / f"{number}.png"), mask_hw)
    (folder / "small.toml").write_text(RECIPE + METHOD)
    return folder


@dataclass
class Adapted:
    """A site that was adapted to, with --test and --compare."""

    site: Path
    output: list[str]

    @property
    def report(self) -> dict:
        return json.loads((self.site / "bundle-work" / "report.json").read_text())


def arguments_for(site: Path, *more: str) -> list[str]:
    given = ["--labeled", str(site / "labeled"), "--unlabeled", str(site / "unlabeled")]
    trained = ["--recipe", str(site / "small.toml"), "--out", str(site / "bundle")]
    return ["adapt", *given, *trained, *more]


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
    backend = open_backend("onnxruntime", bundle)
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


def keep(count: int, folder: Path) -> None:
    for part in ("image", "mask"):
        for path in sorted((folder / part).iterdir())[count:]:
            path.unlink()


def write_mask(path: Path, value: int, height: int = 64) -> None:
    mask_hw = np.zeros((height, 96), np.uint8)
    mask_hw[:9] = value
    cv2.imwrite(str(path), mask_hw)


SPOILED: list[tuple[str, Callable[[Path], object], str]] = [
    ("no frames", lambda site: keep(0, site / "labeled"), "holds no frames"),
    ("few frames", lambda site: keep(4, site / "labeled"), "There are 4 labeled frames"),
    ("no folder", lambda site: shutil.rmtree(site / "labeled"), "There is no folder"),
    ("a mask is missing", lambda site: (site / "labeled/mask/3.png").unlink(), "3.png has no mask"),
    ("a picture is missing", lambda site: (site / "labeled/image/3.png").unlink(), "3.png has no picture"),
    ("no masks", lambda site: shutil.rmtree(site / "labeled/mask"), "is unlabeled"),
    ("unknown values", lambda site: write_mask(site / "labeled/mask/3.png", 77), "unknown values [77]"),
    ("another size", lambda site: write_mask(site / "labeled/mask/3.png", 255, 60), "the mask is 96 x 60"),
    ("unreadable", lambda site: (site / "labeled/image/3.png").write_bytes(b"?"), "3.png cannot be read"),
    (
        "no instrument",
        lambda site: [write_mask(path, 0) for path in (site / "labeled/mask").iterdir()],
        "hold only the classes [0]",
    ),
    ("unlabeled", lambda site: (site / "unlabeled/2.png").write_bytes(b"?"), "2.png cannot be read"),
    ("no video", lambda site: (site / "unlabeled/b.mp4").write_bytes(b"?" * 999), "b.mp4 is not a video"),
    (
        "only black",
        lambda site: [(site / f"unlabeled/{number}.png").unlink() for number in range(4)],
        "worth learning from: 0 of 1 frames kept; left out: 1 black",
    ),
    ("old bundle", lambda site: (site / "bundle/x").mkdir(parents=True), "bundle exists"),
    (
        "test is unlabeled",
        lambda site: shutil.copy(site / "test/image/1.png", site / "unlabeled/other.png"),
        "1 pictures of",
    ),
    (
        "test is labeled",
        lambda site: [
            shutil.copy(site / f"labeled/{p}/1.png", site / f"test/{p}/9.png") for p in ("image", "mask")
        ],
        "are also labeled ones",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "words"), [case[1:] for case in SPOILED], ids=[case[0] for case in SPOILED]
)
def test_what_is_wrong_with_the_frames_is_said_before_training(
    site: Path, spoil: Callable[[Path], object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(site)
    assert main(arguments_for(site, "--test", str(site / "test"))) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (site / "bundle-work" / "adapted").exists()


def test_every_bad_pair_is_named(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mask(site / "labeled" / "mask" / "3.png", 77)
    (site / "labeled" / "image" / "5.png").unlink()
    assert main(arguments_for(site)) == 2
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["problem", "problem"]
    assert "3.png" in printed.out
    assert "5.png" in printed.out
    assert "has 2 problems" in printed.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--compare"], "without --test"),
        (["--work", "SITE/bundle"], "are both"),
        (["--set", "labeled.0.weight=2"], "names what the command line gives"),
        (["--set", "stepz=3"], "Did you mean 'steps'?"),
        (["--unlabeled", "SITE/unlabeled,sahre=0.5"], "Did you mean 'share'?"),
        (["--unlabeled", "vidoe:SITE/unlabeled"], "Did you mean video?"),
        (["--start", "SITE/none.pt"], "There is no checkpoint"),
        (["--recipe", "none"], "adapt"),
    ],
)
def test_a_wrong_command_is_refused_before_training(
    site: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments_for(site, *(word.replace("SITE", str(site)) for word in more))) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (site / "bundle-work" / "adapted").exists()


def test_a_declared_transductive_test_is_permitted(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(site / "test" / "image" / "1.png", site / "unlabeled" / "other.png")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    assert main(arguments_for(site, "--test", str(site / "test"), "--transductive")) == 2
    assert "MB left" in capsys.readouterr().err  # it came as far as the training


def test_a_video_that_ends_early_is_used_as_far_as_it_goes(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = site / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=1, options={"g": "1", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = SIZE.width, SIZE.height, "yuv420p"
        for image_hwc in draw_pictures(SIZE, 8, seed=70):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_hwc, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    assert main(arguments_for(site, "--unlabeled", str(path))) == 2
    assert "clip.mp4" in caplog.text
    listed = json.loads((site / "bundle-work" / "unlabeled_2.json").read_text())
    assert 1 <= listed["frames"] < 8


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
