"""`surgseg segment`: pictures, folders and videos to mask and overlay files, without a running service.

The decoding, geometry and backends are the service's own, so the mask of a picture equals the service's answer.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from service.backends import open_backend
from service.backends.base import Backend, require_confidence
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import open_bundle
from service.contract.geometry import Confidence, Fit, Image, Mask, fit_image, plan_fit, restore_mask
from service.contract.masks import MASK_FORMATS, MEDIA_TYPES, MaskFormat, encode_mask, to_png
from service.contract.model_card import ModelCard
from service.errors import DataError, InvalidPictureError, PayloadTooLargeError, StreamError
from service.output_files import (
    PICTURE_SUFFIXES,
    OutputLayout,
    PictureJob,
    check_outputs,
    make_folder,
    plan_folder,
    write_whole,
)
from service.overlay import draw_overlay
from service.recording import VideoWriter
from service.streams.pictures import decode_fitted, decode_picture
from service.streams.video import VideoFile

MAX_PIXELS = 200_000_000
_RATE_WHEN_UNKNOWN = Fraction(25)
_JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 92]


class Segmenter:
    """A backend with the geometry round it. One thread opens, uses and closes it."""

    def __init__(self, bundle_folder: Path, backend: str = "auto") -> None:
        """Open and check a bundle. Raises BundleError and BackendError."""
        bundle = open_bundle(bundle_folder)
        self.card: ModelCard = bundle.card
        self._backend: Backend = open_backend(backend, bundle)

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self._backend.close()

    def fit(self, image_hwc: Image) -> tuple[Image, Fit]:
        """A picture, uint8 RGB `(H, W, 3)`, on the model's canvas."""
        height, width = image_hwc.shape[:2]
        fit = plan_fit(height, width, self.card.input_size, self.card.fit)
        return fit_image(image_hwc, fit), fit

    def decode(self, data: bytes) -> tuple[Image, Fit]:
        """A picture's bytes on the model's canvas, as the service decodes them; raises what `decode_fitted` raises."""
        return decode_fitted(data, self.card.input_size, self.card.fit, max_pixels=MAX_PIXELS)[:2]

    def segment(self, canvas_hwc: Image, fit: Fit) -> Mask:
        """Class ids uint8 `(H, W)` at the picture's own size."""
        return restore_mask(self._backend.segment(canvas_hwc[None])[0], fit)

    def segment_with_confidence(self, canvas_hwc: Image, fit: Fit) -> tuple[Mask, Confidence]:
        """As `segment`, with 255 times the probability of each pixel's class, uint8 `(H, W)`.

        Raises BundleError when the bundle has no such output.
        """
        masks_nhw, confidences_nhw = self._backend.segment_with_confidence(canvas_hwc[None])
        return restore_mask(masks_nhw[0], fit), restore_mask(confidences_nhw[0], fit)

    def draw(self, image_hwc: Image, mask_hw: Mask) -> Image:
        """The picture with its mask drawn over it in the card's colours."""
        return draw_overlay(image_hwc, mask_hw, self.card.classes)


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for."""

    source: Path
    out: Path
    mask_format: MaskFormat
    has_overlay: bool
    has_confidence: bool = False

    @property
    def layout(self) -> OutputLayout:
        mask_suffix = ".json" if MEDIA_TYPES[self.mask_format] == "application/json" else ".png"
        return OutputLayout(self.out, mask_suffix, self.has_overlay, self.has_confidence)


@dataclass(slots=True)
class Outcome:
    """What was done: frames segmented, files that were no pictures, and one line for each that failed."""

    frames: int = 0
    other_files: int = 0
    failures: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `surgseg segment`."""
    parser.add_argument("source", type=Path, metavar="IMAGE|FOLDER|VIDEO", help="what to segment")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="gets masks/ (values are class ids), overlays/ and confidence/")  # fmt: skip
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, metavar="DIR", help="the model")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="inference runtime (auto)")
    parser.add_argument("--mask", choices=MASK_FORMATS, default="png", help="form of the masks (png)")
    parser.add_argument("--no-overlay", action="store_true", help="write no overlays")
    parser.add_argument("--confidence", action="store_true",
                        help="write how sure the model is of each pixel: PNG, 255 times its probability")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Segment and say how it went. 0 when all was done, 1 when some input failed; raises SurgsegError."""
    request = Request(
        arguments.source, arguments.out, arguments.mask, not arguments.no_overlay, arguments.confidence
    )
    if not request.source.exists():
        raise DataError(f"There is no {request.source}.", "a picture, a folder or a video", "Check the path.")
    with Segmenter(arguments.bundle, arguments.backend) as segmenter:
        started_at = time.monotonic()
        outcome = segment_source(segmenter, request)
        elapsed_s = time.monotonic() - started_at
    rate = outcome.frames / elapsed_s
    print(f"{outcome.frames} segmented in {elapsed_s:.1f} s ({rate:.1f} frames/s) -> {request.out}")
    if outcome.other_files:
        print(f"{outcome.other_files} files that are not pictures were left out")
    for line in outcome.failures:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if outcome.failures else 0


def segment_source(segmenter: Segmenter, request: Request) -> Outcome:
    """Segment a picture, a folder of pictures or a video. Raises SurgsegError before anything is written."""
    if request.has_confidence:
        require_confidence(segmenter.card)
    if request.source.is_dir():
        plan = plan_folder(request.source, request.layout)
        outcome = _segment_pictures(segmenter, request, plan.jobs)
        outcome.other_files = plan.other_files
        return outcome
    if request.source.suffix.lower() in PICTURE_SUFFIXES:
        job = request.layout.plan(request.source, Path(request.source.stem))
        return _segment_pictures(segmenter, request, (job,))
    return _segment_video(segmenter, request)


def _segment_pictures(segmenter: Segmenter, request: Request, jobs: tuple[PictureJob, ...]) -> Outcome:
    check_outputs((job.source for job in jobs), (path for job in jobs for path in job.outputs))
    outcome = Outcome()
    for job in tqdm(jobs, unit="picture", disable=None):
        try:
            data = _read_bytes(job.source)
            canvas_hwc, fit = segmenter.decode(data)
        except (InvalidPictureError, PayloadTooLargeError) as error:
            outcome.failures.append(f"{job.source}: {error.found}")
            continue
        mask_hw = _write_mask(segmenter, request, job, canvas_hwc, fit)
        if job.overlay_path is not None:
            image_hwc = decode_picture(data, max_pixels=MAX_PIXELS)
            write_whole(job.overlay_path, _to_jpeg(segmenter.draw(image_hwc, mask_hw)))
        outcome.frames += 1
    return outcome


def _segment_video(segmenter: Segmenter, request: Request) -> Outcome:
    """One mask file a frame, their times in frames.csv, and an overlay video with the source's times."""
    name = request.source.stem
    masks = request.out / "masks" / name
    overlay_path = request.out / "overlays" / f"{name}.mp4"
    check_outputs([request.source], [overlay_path, masks / "frames.csv"])
    outcome = Outcome()
    times = io.StringIO()
    rows = csv.writer(times)
    rows.writerow(["file", "pts_s"])
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(VideoFile(request.source))
        make_folder(masks)
        recording = None
        if request.has_overlay:
            make_folder(overlay_path.parent)
            writer = VideoWriter(overlay_path, video.average_rate or _RATE_WHEN_UNKNOWN)
            recording = stack.enter_context(writer)
        for image_hwc, pts_s in _until_damaged(video, outcome):
            job = request.layout.plan(request.source, Path(name, f"{outcome.frames:06d}"))
            mask_hw = _write_mask(segmenter, request, job, *segmenter.fit(image_hwc))
            if recording is not None:
                recording.write(segmenter.draw(image_hwc, mask_hw), pts_s)
            rows.writerow([job.mask_path.name, "" if pts_s is None else f"{pts_s:.6f}"])
            outcome.frames += 1
    write_whole(masks / "frames.csv", times.getvalue().encode())
    return outcome


def _write_mask(segmenter: Segmenter, request: Request, job: PictureJob, canvas_hwc: Image, fit: Fit) -> Mask:
    """Segment one picture or frame and write its mask, and its confidence where that is wanted; gives the mask."""
    if job.confidence_path is None:
        mask_hw = segmenter.segment(canvas_hwc, fit)
    else:
        mask_hw, confidence_hw = segmenter.segment_with_confidence(canvas_hwc, fit)
        write_whole(job.confidence_path, to_png(confidence_hw))
    write_whole(job.mask_path, encode_mask(mask_hw, request.mask_format, segmenter.card.classes))
    return mask_hw


def _until_damaged(video: VideoFile, outcome: Outcome) -> Iterator[tuple[Image, float | None]]:
    """The frames with a progress bar; damage at the end becomes a failure of the outcome, if anything was whole."""
    try:
        for frame in tqdm(video.frames(), total=video.frame_count, unit="frame", disable=None):
            yield frame.image_hwc, frame.pts_s
    except StreamError as error:
        if outcome.frames == 0:
            raise
        outcome.failures.append(error.found)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidPictureError(
            f"It cannot be read ({error.strerror}).", "a picture file", "Check its permissions."
        ) from error


def _to_jpeg(image_hwc: Image) -> bytes:
    done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(image_hwc[:, :, ::-1]), _JPEG_OPTIONS)
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {image_hwc.shape}")
    return bytes(encoded.tobytes())
