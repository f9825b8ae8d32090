"""Video files and folders of pictures as an unlabeled pool.

Of a video one frame a second, by presentation time, is decoded once, front to back, and kept as a JPEG in a cache
folder. Seeking for each frame would decode from the key frame before it every time, decoding at every start costs
minutes for an hour of video, and frames kept in memory would grow with the pool. With the cache the JPEGs of one video
at most are in memory, worker processes share the files, and a second or resumed run starts at once. The decoder runs in
this process: use it for files that their owner opens, not for bitstreams from strangers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
from av.video.frame import VideoFrame
from tqdm import tqdm

from service.errors import DataError
from training.data.pairs import IMAGE_SUFFIXES
from training.data.samples import Sample, read_image
from training.data.video_decoding import VideoDecoding, shrink_to_rgb

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".dv", ".flv", ".h264", ".hevc", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})
# fmt: on
INTERVAL_S = 1.0
MOST_FRAMES = 600
MOST_LINES = 720
JPEG_QUALITY = 95

_INDEX = "index.json"
_FORMAT = 1
logger = logging.getLogger(__name__)


def read(
    root: Path, interval_s: float = INTERVAL_S, most_frames: int = MOST_FRAMES
) -> Iterator[Sample | DataError]:
    """Frames of every video below `root` and every picture, in order of path and time; `root` may be one file.

    A video file gives the samples `<path without suffix>/<frame number>`, the first frame in each `interval_s` and at
    most `most_frames`, spread evenly over its length. A picture is a frame of the video its folder names. Hidden files
    and other suffixes are passed over. A video that ends early gives what it has, with a warning; one of which no frame
    can be decoded gives the DataError that names it.
    """
    base = root if root.is_dir() else root.parent
    paths = _find_files(root) if root.is_dir() else [root]
    seen: set[str] = set()
    damaged = 0
    for path in tqdm(paths, desc="videos", unit="file", disable=None):
        name = path.relative_to(base).with_suffix("").as_posix()
        if path.suffix.lower() in IMAGE_SUFFIXES:
            video = name.rpartition("/")[0] or base.resolve().name
            pictures = [path]
        else:
            try:
                frames = _cached_frames(path, interval_s, most_frames)
            except DataError as error:
                yield error
                continue
            video, pictures = name, frames.pictures
            damaged += bool(frames.damage)
        for picture in pictures:
            yield _make_sample(video, picture, seen, path)
    if damaged:
        logger.warning("%d of %d files in %s are damaged or end early.", damaged, len(paths), root)


def _make_sample(video: str, picture: Path, seen: set[str], path: Path) -> Sample | DataError:
    sample_id = f"{video}/{picture.stem}"
    if sample_id in seen:
        return DataError(
            f"{path} gives a second frame {sample_id}.",
            "names that differ in more than their suffix",
            "Rename it, or remove it.",
        )
    seen.add(sample_id)
    return Sample(sample_id, video, partial(read_image, picture))


def cache_folder() -> Path:
    """Where frames are kept: `$XDG_CACHE_HOME/surgseg/video_frames`, by default below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surgseg" / "video_frames"


@dataclass
class EvenFrames:
    """The first frame in each interval, thinned to every second one, with doubled intervals, when they are too many.

    So the frames are spread evenly whatever length the container claims: never more than `most`, and more than half
    of it once there were more. Times are seconds.
    """

    interval_s: float
    most: int
    kept: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    first_s: float | None = None

    def wants(self, pts_s: float) -> bool:
        """Whether this is the first frame of its interval."""
        self.first_s = pts_s if self.first_s is None else self.first_s
        return self._interval_of(pts_s) not in self.kept

    def add(self, pts_s: float, number: int, jpeg: bytes) -> None:
        """Keep a frame that is wanted."""
        self.kept[self._interval_of(pts_s)] = (number, jpeg)
        while len(self.kept) > self.most:
            self.interval_s *= 2
            thinned: dict[int, tuple[int, bytes]] = {}
            for interval, frame in sorted(self.kept.items()):
                thinned.setdefault(interval // 2, frame)
            self.kept = thinned

    def _interval_of(self, pts_s: float) -> int:
        assert self.first_s is not None
        # half a millisecond absorbs the rounding of containers that count time in milliseconds
        return int((pts_s - self.first_s + 5e-4) // self.interval_s)


@dataclass(frozen=True)
class _CachedFrames:
    pictures: list[Path]
    damage: str


def _find_files(root: Path) -> list[Path]:
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def _cached_frames(path: Path, interval_s: float, most_frames: int) -> _CachedFrames:
    """The frames of one video, decoded now unless the cache has them."""
    status = path.stat()
    # size and time of change stand for the contents: hashing a long recording would take as long as reading it
    key = [_FORMAT, str(path.resolve()), status.st_size, status.st_mtime_ns, interval_s, most_frames]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = cache_folder() / f"{path.stem}-{digest[:16]}"
    frames = _open_cached(folder)
    if frames is None:
        frames = _fill_cache(path, folder, interval_s, most_frames)
    if frames.damage:
        logger.warning("%s %s; its %d frames are used.", path, frames.damage, len(frames.pictures))
    return frames


def _open_cached(folder: Path) -> _CachedFrames | None:
    """None where the folder is absent or lacks a picture, as when a cleaner of caches came by."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        pictures = [folder / name for name in index["pictures"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _CachedFrames(pictures, index["damage"]) if all(map(Path.is_file, pictures)) else None


def _fill_cache(path: Path, folder: Path, interval_s: float, most_frames: int) -> _CachedFrames:
    jpegs, damage = _sample_video(path, interval_s, most_frames)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # frames of patients are nobody else's
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _write_frames(Path(scratch) / folder.name, jpegs, damage)
            shutil.rmtree(folder, ignore_errors=True)
            (Path(scratch) / folder.name).rename(folder)
    except OSError as error:
        frames = _open_cached(folder)  # another process may have been first
        if frames is None:
            raise DataError(
                f"The frames of {path} cannot be kept in {folder.parent} ({error.strerror}).",
                "a folder that can be written, with room for about 100 MB a video",
                "Make room, or set XDG_CACHE_HOME to another folder.",
            ) from error
        return frames
    return _CachedFrames([folder / name for name in jpegs], damage)


def _write_frames(folder: Path, jpegs: dict[str, bytes], damage: str) -> None:
    folder.mkdir()
    for name, jpeg in jpegs.items():
        (folder / name).write_bytes(jpeg)
    (folder / _INDEX).write_text(json.dumps({"pictures": list(jpegs), "damage": damage}), encoding="utf-8")


def _sample_video(path: Path, interval_s: float, most_frames: int) -> tuple[dict[str, bytes], str]:
    """JPEGs by file name, and what is wrong with the video in a few words, or nothing."""
    even = EvenFrames(interval_s, most_frames)
    decoding = VideoDecoding(path)
    for number, (pts_s, frame) in enumerate(decoding.frames()):
        if even.wants(pts_s):
            even.add(pts_s, number, _encode(frame))
    jpegs = {f"{number:08d}.jpg": jpeg for _, (number, jpeg) in sorted(even.kept.items())}
    return jpegs, decoding.damage


def _encode(frame: VideoFrame) -> bytes:
    image_bgr = shrink_to_rgb(frame, MOST_LINES)[:, :, ::-1]
    return cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
