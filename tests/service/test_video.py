"""Video files as frames: real H.264 made here, in several containers, whole, damaged and of other kinds."""

from __future__ import annotations

import math
import threading
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.video.frame import VideoFrame

from service.contract.geometry import Image
from service.errors import StreamError
from service.recording import VideoWriter
from service.streams.video import VideoFile, read_video

HEIGHT, WIDTH = 96, 128
COLOURS = ((200, 60, 30), (20, 180, 220), (240, 240, 240), (10, 10, 10))


def make_quarters(height: int = HEIGHT, width: int = WIDTH) -> Image:
    """Four flat colours, one a quarter, so that turning and mirroring show."""
    image_hwc = np.empty((height, width, 3), np.uint8)
    for index, colour in enumerate(COLOURS):
        top, left = index // 2 * height // 2, index % 2 * width // 2
        image_hwc[top : top + height // 2, left : left + width // 2] = colour
    return image_hwc


def make_noisy(number: int) -> Image:
    """A frame that differs from its neighbours and does not compress well; its top left tells its number."""
    image_hwc = np.random.default_rng(number).integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image_hwc[:32, :32] = number * 8
    return image_hwc


def read_number(image_hwc: Image) -> int:
    return round(float(image_hwc[4:28, 4:28].mean()) / 8)


def write_video(path: Path, frames: list[Image], *, is_full_range: bool = False, **options: str) -> None:
    """Encode with libx264 as plainly as can be; `options` go to the muxer, except `g`, the key frame interval."""
    interval = options.pop("g", "250")
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": interval, "bf": "2"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        color_range = 2 if is_full_range else 1
        stream.codec_context.color_range = color_range
        for image_hwc in frames:
            frame = VideoFrame.from_ndarray(image_hwc, format="rgb24")
            container.mux(
                stream.encode(
                    frame.reformat(format="yuv420p", src_color_range=2, dst_color_range=color_range)
                )
            )
        container.mux(stream.encode())


def read_all(path: Path) -> tuple[list[int], StreamError | None]:
    numbers = []
    try:
        for frame in read_video(path):
            numbers.append(read_number(frame.image_hwc))
    except StreamError as error:
        return numbers, error
    return numbers, None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".mov"])
def test_every_frame_comes_once_in_order_with_its_time(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"video{suffix}"
    write_video(path, [make_noisy(number) for number in range(20)])
    frames = list(read_video(path))
    assert [read_number(frame.image_hwc) for frame in frames] == list(range(20))
    assert all(frame.image_hwc.shape == (HEIGHT, WIDTH, 3) for frame in frames)
    assert all(frame.image_hwc.dtype == np.uint8 and frame.image_hwc.flags.c_contiguous for frame in frames)
    times = [frame.pts_s for frame in frames if frame.pts_s is not None]
    assert np.allclose(np.diff(times), 0.04, atol=1e-3)


def test_what_the_container_says_is_there(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, [make_noisy(number) for number in range(20)])
    with VideoFile(path) as video:
        assert (video.average_rate, video.frame_count) == (Fraction(25), 20)
        assert video.duration_s == pytest.approx(0.8)


@pytest.mark.parametrize("is_full_range", [False, True])
def test_colours_come_back_in_either_range(tmp_path: Path, is_full_range: bool) -> None:
    path = tmp_path / "video.mp4"
    image_hwc = make_quarters()
    write_video(path, [image_hwc] * 3, is_full_range=is_full_range)
    read_hwc = next(iter(read_video(path))).image_hwc
    difference = np.abs(read_hwc.astype(int) - image_hwc)[8:40, 8:56]
    assert difference.mean() < 4


@pytest.mark.parametrize(("height", "width"), [(480, 640), (720, 1280)])
def test_what_the_writer_writes_comes_back_with_its_colours_and_times(
    tmp_path: Path, height: int, width: int
) -> None:
    path = tmp_path / "video.mp4"
    image_hwc = make_quarters(height, width)
    times = [0.5, 0.54, 0.6, 1.0]
    with VideoWriter(path, Fraction(25)) as writer:
        for pts_s in times:
            writer.write(image_hwc, pts_s)
    frames = list(read_video(path))
    assert [frame.pts_s for frame in frames] == pytest.approx(times, abs=1e-4)
    assert np.abs(frames[0].image_hwc.astype(int) - image_hwc).mean() < 3


def test_untagged_hd_video_is_read_as_bt709(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    image_hwc = make_quarters(720, 1280)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 720, 1280, "yuv420p"
        frame = VideoFrame.from_ndarray(image_hwc, format="rgb24")
        untagged = frame.reformat(format="yuv420p", dst_colorspace=1, src_color_range=2, dst_color_range=1)
        container.mux([*stream.encode(untagged), *stream.encode()])
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 2, "the file was meant to have no tag"
    read_hwc = next(iter(read_video(path))).image_hwc
    assert np.abs(read_hwc.astype(int) - image_hwc).mean() < 3


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_shown_upright(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "video.mp4"
    upright_hwc = make_quarters()
    write_video(path, [np.ascontiguousarray(np.rot90(upright_hwc, degrees // 90))] * 3)
    turn_track(path, degrees)
    read_hwc = next(iter(read_video(path))).image_hwc
    assert read_hwc.shape == upright_hwc.shape
    assert np.abs(read_hwc.astype(int) - upright_hwc).mean() < 8


def turn_track(path: Path, clockwise_degrees: int) -> None:
    """Set the display matrix in the MP4's track header, as cameras do: turn clockwise when showing."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes of times, ids and flags lie before the matrix
    cosine, sine = (round(part(math.radians(clockwise_degrees)) * 65536) for part in (math.cos, math.sin))
    matrix = (cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(bytes(data))


def test_a_truncated_file_gives_the_frames_before_the_cut_and_then_one_error(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_video(whole, [make_noisy(number) for number in range(30)], movflags="faststart")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    numbers, error = read_all(cut)
    assert error is not None
    assert "damaged or truncated" in error.found
    assert 10 <= len(numbers) < 30
    assert numbers == list(range(len(numbers)))


def find_middle_of_a_packet(path: Path) -> int:
    """Where a cut goes through a picture; one between two pictures does not show in these containers."""
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos is not None]
    middle = len(places) // 2
    return (places[middle] + places[middle + 1]) // 2


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_truncation_shows_in_other_containers_too(tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    write_video(whole, [make_noisy(number) for number in range(30)])
    cut.write_bytes(whole.read_bytes()[: find_middle_of_a_packet(whole)])
    numbers, error = read_all(cut)
    assert error is not None
    assert numbers == list(range(len(numbers)))


def test_after_damage_in_the_middle_frames_go_on_at_the_next_key_frame(tmp_path: Path) -> None:
    path = tmp_path / "video.ts"
    write_video(path, [make_noisy(number) for number in range(30)], g="10")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 188 * 188
    del data[middle : middle + 188 * 4]
    path.write_bytes(bytes(data))
    numbers, error = read_all(path)
    assert error is not None
    assert "damaged" in error.found
    assert numbers == sorted(set(numbers))
    assert {0, 1, 2, 27, 28, 29} <= set(numbers)
    assert len(numbers) < 30


def test_a_file_without_its_index_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, [make_noisy(number) for number in range(5)])
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(StreamError, match="not a video"):
        VideoFile(path)


def write_sound(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))


NOT_VIDEOS: dict[str, Any] = {
    "missing.mp4": lambda path: None,
    "empty.mp4": lambda path: path.write_bytes(b""),
    "folder.mp4": lambda path: path.mkdir(),
    "noise.mp4": lambda path: path.write_bytes(np.random.default_rng(1).bytes(5000)),
    "text.txt": lambda path: path.write_text("these are words\n" * 50),
    "sound.wav": write_sound,
    "playlist.m3u8": lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nabsent.ts\n"),
}


@pytest.mark.parametrize("name", NOT_VIDEOS)
def test_what_is_no_video_gives_one_clear_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    NOT_VIDEOS[name](path)
    with pytest.raises(StreamError, match=name) as caught:
        list(read_video(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_picture_is_not_a_video(tmp_path: Path) -> None:

    path = tmp_path / "picture.jpg"
    cv2.imwrite(str(path), make_quarters())
    with pytest.raises(StreamError, match="not a video"):
        list(read_video(path))


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.mp4", [make_noisy(number) for number in range(3)])
    (tmp_path / "plain.mp4").rename(tmp_path / "tcp:1.mp4")
    assert len(list(read_video("tcp:1.mp4"))) == 3


def test_closing_from_another_thread_ends_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, [make_noisy(number) for number in range(30)])
    video = VideoFile(path)
    frames = video.frames()
    next(frames)
    closer = threading.Thread(target=video.close)
    closer.start()
    closer.join(10)
    assert list(frames) == []
    video.close()
    assert list(video.frames()) == []


@pytest.mark.parametrize(
    ("name", "count", "height", "width"),
    [("cholecystectomy_480p_25fps_3s.mp4", 81, 480, 854), ("davinci_1080p_10fps_2s.mp4", 20, 1080, 1920)],
)
def test_a_real_clip_is_read_whole(data_folder: Path, name: str, count: int, height: int, width: int) -> None:
    path = data_folder / "clips" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    frames = 0
    for frame in read_video(path):
        assert frame.image_hwc.shape == (height, width, 3)
        frames += 1
    assert frames == count


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, Fraction(25)) as writer:
        writer.write(make_quarters(), 0.0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_odd_sides_and_missing_or_repeated_times_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with VideoWriter(path, Fraction(25)) as writer:
        for pts_s in (None, 0.04, 0.04, None):
            writer.write(make_quarters(97, 129), pts_s)
        writer.write(make_quarters(60, 60), 0.4)
    frames = list(read_video(path))
    assert [frame.pts_s for frame in frames] == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.4])
    assert {frame.image_hwc.shape for frame in frames} == {(98, 130, 3)}
