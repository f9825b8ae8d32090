"""Video files and pictures as an unlabeled pool: real H.264 made here, whole, cut short, and of other kinds."""

from __future__ import annotations

import logging
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from service.contract.geometry import Image
from service.errors import DataError
from training.data import open_data
from training.data.samples import Sample
from training.data.video_pool import MOST_LINES, EvenFrames, cache_folder, read

RATE = 5
KEY_INTERVAL = 10
CODING = {"g": str(KEY_INTERVAL), "sc_threshold": "0", "bf": "2", "crf": "12"}
LOGGER = "training.data.video_pool"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


def make_frame(number: int, height: int = 48, width: int = 64) -> Image:
    """Noise that does not compress, with a patch whose level tells the number."""
    image_hwc = np.random.default_rng(number).integers(0, 90, (height, width, 3), dtype=np.uint8)
    image_hwc[:32, :32] = 20 + number * 4
    return image_hwc


def read_number(sample: Sample) -> int:
    return round((float(sample.load_image()[4:28, 4:28].mean()) - 20) / 4)


def write_video(path: Path, frames: list[Image], rate: int = RATE, **options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options=CODING)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image_hwc in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_hwc, format="rgb24")))
        container.mux(stream.encode())


def write_sound(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(8000))


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_one_frame_a_second_is_taken_by_time(videos: Path, suffix: str) -> None:
    write_video(videos / f"case{suffix}", [make_frame(number) for number in range(4 * RATE)])
    samples = open_data(f"video:{videos}")
    numbers = [read_number(sample) for sample in samples]
    assert numbers == pytest.approx([0, 5, 10, 15], abs=1)  # AVI's times are those of decoding, a frame off
    assert [sample.sample_id for sample in samples] == [f"case/{number:08d}" for number in numbers]
    assert all(sample.video == "case" and sample.load_mask is None for sample in samples)
    assert all(sample.load_image().shape == (48, 64, 3) for sample in samples)


def test_the_colours_come_back(videos: Path) -> None:
    tissue_hwc = np.full((48, 64, 3), (200, 90, 70), np.uint8)
    write_video(videos / "case.mp4", [tissue_hwc] * 2)
    (sample,) = open_data(f"video:{videos}")
    assert np.abs(sample.load_image().astype(int) - tissue_hwc).max() <= 4


def test_a_pool_is_every_video_and_picture_below_a_folder_in_a_fixed_order(videos: Path) -> None:
    write_video(videos / "b" / "second.mkv", [make_frame(2)])
    write_video(videos / "a.mp4", [make_frame(1)])
    (videos / "notes.txt").write_text("not a frame")
    (videos / ".hidden.mp4").write_text("nor this")
    for name in ("stills/1.png", "0.png"):
        (videos / name).parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(videos / name), make_frame(3))
    samples = open_data(f"video:{videos}")
    assert [(sample.video, sample.sample_id) for sample in samples] == [
        ("videos", "videos/0"),
        ("a", "a/00000000"),
        ("b/second", "b/second/00000000"),
        ("stills", "stills/1"),
    ]
    assert [read_number(sample) for sample in samples] == [3, 1, 2, 3]


def test_one_file_is_a_pool(videos: Path) -> None:
    write_video(videos / "case.mp4", [make_frame(7)])
    (sample,) = open_data(f"video:{videos / 'case.mp4'}")
    assert (sample.sample_id, read_number(sample)) == ("case/00000000", 7)


def test_other_readers_still_want_a_folder(videos: Path) -> None:
    write_video(videos / "case.mp4", [make_frame(7)])
    with pytest.raises(DataError, match="no folder"):
        open_data(f"folder:{videos / 'case.mp4'}")


def test_a_long_video_is_thinned_evenly(videos: Path) -> None:
    write_video(videos / "case.mp4", [make_frame(number) for number in range(40)])
    samples = [entry for entry in read(videos, interval_s=0.2, most_frames=12) if isinstance(entry, Sample)]
    assert [read_number(sample) for sample in samples] == list(range(0, 40, 4))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 1000])
def test_the_cap_holds_for_any_length_and_keeps_the_spread(count: int) -> None:
    even = EvenFrames(1.0, 8)
    for second in range(count):
        if even.wants(30.0 + second):
            even.add(30.0 + second, second, b"")
    numbers = [number for _, (number, _) in sorted(even.kept.items())]
    assert min(count, 5) <= len(numbers) <= 8
    assert numbers[0] == 0
    steps = set(np.diff(numbers).tolist())
    assert len(steps) <= 1 and count - numbers[-1] <= (steps or {1}).pop()


def test_times_without_a_grid_give_at_most_one_frame_a_second() -> None:
    even = EvenFrames(1.0, 100)
    kept = []
    for number, pts_s in enumerate([0.0, 0.4, 0.99, 1.3, 1.9, 5.0, 5.1]):
        if even.wants(pts_s):
            even.add(pts_s, number, b"")
            kept.append(pts_s)
    assert kept == [0.0, 1.3, 5.0]


def test_tall_pictures_are_kept_at_720_lines(videos: Path) -> None:
    write_video(videos / "case.mp4", [np.full((1080, 1920, 3), 90, np.uint8)])
    (sample,) = open_data(f"video:{videos}")
    assert sample.load_image().shape == (MOST_LINES, 1280, 3)


def test_a_second_opening_decodes_nothing_and_a_changed_file_is_decoded_again(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = videos / "case.mp4"
    write_video(path, [make_frame(number) for number in range(10)])
    first = [sample.sample_id for sample in open_data(f"video:{videos}")]
    with monkeypatch.context() as without_decoder:
        without_decoder.setattr(av, "open", None)
        assert [sample.sample_id for sample in open_data(f"video:{videos}")] == first
    write_video(path, [make_frame(number) for number in range(20, 35)])
    assert [read_number(sample) for sample in open_data(f"video:{videos}")] == [20, 25, 30]


def test_a_cache_that_lost_a_picture_is_filled_again(videos: Path) -> None:
    write_video(videos / "case.mp4", [make_frame(number) for number in range(10)])
    open_data(f"video:{videos}")
    (lost, *_) = cache_folder().rglob("*.jpg")
    lost.unlink()
    assert [read_number(sample) for sample in open_data(f"video:{videos}")] == [0, 5]
    assert [path.name for path in cache_folder().iterdir() if not path.name.startswith("case-")] == []


def test_a_cache_that_cannot_be_written_is_a_clear_error(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(videos / "case.mp4", [make_frame(0)])
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"case\.mp4 cannot be kept .*XDG_CACHE_HOME"):
        open_data(f"video:{videos}")


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".mkv", {})])
def test_a_video_that_ends_early_gives_what_it_has_and_says_so(
    videos: Path, suffix: str, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    path = videos / f"case{suffix}"
    write_video(path, [make_frame(number) for number in range(10 * RATE)], **options)
    cut(path, 0.5)
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, LOGGER):
            samples = open_data(f"video:{videos}")
        numbers = [read_number(sample) for sample in samples]
        assert numbers == [5 * n for n in range(len(numbers))] and 3 <= len(numbers) <= 6
        first, total = caplog.messages
        assert str(path) in first and f"its {len(numbers)} frames are used" in first
        assert "ends after" in first or "damaged" in first
        assert "1 of 1 files" in total


def test_damage_in_the_middle_is_left_out_up_to_the_next_key_frame(
    videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = videos / "case.mp4"
    write_video(path, [make_frame(number) for number in range(10 * RATE)], movflags="faststart")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = np.random.default_rng(0).bytes(4000)
    path.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING, LOGGER):
        samples = [entry for entry in read(videos, interval_s=1 / RATE) if isinstance(entry, Sample)]
    assert "damaged packets" in caplog.text
    assert 35 <= len(samples) < 50
    # a frame that refers to lost ones has an even patch of the wrong level, or an uneven one
    numbers = [read_number(sample) for sample in samples]
    steps = np.diff(numbers)
    assert (steps >= 1).all() and (steps > 1).sum() <= 2
    assert numbers[int(steps.argmax()) + 1] % KEY_INTERVAL == 0
    for sample in samples:
        patch_hwc = sample.load_image()[4:28, 4:28].astype(int)
        assert patch_hwc.max() - patch_hwc.min() < 30


def test_what_is_no_video_is_named_and_the_others_are_read(videos: Path) -> None:
    write_video(videos / "a.mp4", [make_frame(1)])
    write_video(videos / "cut.mp4", [make_frame(number) for number in range(10)])
    cut(videos / "cut.mp4", 0.5)  # its index is at the end: nothing can be read
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("This is a text file.\n" * 100)
    write_sound(videos / "sound.mov")
    entries = list(read(videos))
    assert [entry.sample_id for entry in entries if isinstance(entry, Sample)] == ["a/00000000"]
    errors = [str(entry) for entry in entries if isinstance(entry, DataError)]
    assert len(errors) == 4
    for name, error in zip(("cut.mp4", "empty.mp4", "sound.mov", "text.mp4"), errors, strict=True):
        assert str(videos / name) in error and "Expected a video file" in error
    assert "no video in it, only audio" in errors[2]
    with pytest.raises(DataError, match=r"cut\.mp4"):
        open_data(f"video:{videos}")


def test_files_that_would_share_their_frames_names_are_refused(videos: Path) -> None:
    write_video(videos / "case.avi", [make_frame(1)])
    write_video(videos / "case.mp4", [make_frame(1)])
    with pytest.raises(DataError, match=r"case\.mp4 gives a second frame case/00000000"):
        open_data(f"video:{videos}")
