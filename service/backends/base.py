"""What every backend keeps to, and what they share: checks of their input and the cores they may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Bundle
from service.contract.model_card import CONFIDENCE, InputSize, ModelCard
from service.errors import BundleError

Images = NDArray[np.uint8]
Masks = NDArray[np.uint8]
Confidences = NDArray[np.uint8]


class Backend(Protocol):
    """An opened model. One thread, the engine's, opens, uses and closes it."""

    name: str
    precision: str
    batch_sizes: tuple[int, ...]
    """Batch sizes it was opened for, ascending; `segment` takes no other."""

    def segment(self, images_nhwc: Images) -> Masks:
        """Class ids uint8 `(N, H, W)` of RGB uint8 `(N, H, W, 3)`, C-contiguous, N one of `batch_sizes`.

        The result may lie in a buffer of the backend's own and is valid until the next call. Raises
        ValueError for images of another form, BackendError when the runtime fails.
        """
        ...

    def segment_with_confidence(self, images_nhwc: Images) -> tuple[Masks, Confidences]:
        """As `segment`, with the confidence of each pixel: uint8 `(N, H, W)`, 255 times the probability of its class.

        Raises BundleError when the bundle has no such output.
        """
        ...

    def close(self) -> None:
        """Free what the runtime holds; the backend cannot be used afterwards. Closing twice does nothing."""
        ...


class BackendFactory(Protocol):
    """A backend's class, seen as the function that opens a bundle."""

    def __call__(self, bundle: Bundle, *, batch_sizes: tuple[int, ...], threads: int | None) -> Backend: ...


def check_images(images_nhwc: Images, size: InputSize, batch_sizes: tuple[int, ...]) -> None:
    """Raise ValueError unless the images have the form that `Backend.segment` states."""
    if images_nhwc.dtype != np.uint8 or not images_nhwc.flags.c_contiguous:
        raise ValueError(f"images are contiguous uint8, got {images_nhwc.dtype} {images_nhwc.strides}")
    expected = (size.height, size.width, 3)
    if images_nhwc.shape[1:] != expected or images_nhwc.shape[0] not in batch_sizes:
        raise ValueError(f"images are {batch_sizes} x {expected}, got {images_nhwc.shape}")


def require_confidence(card: ModelCard) -> None:
    """Raise BundleError unless the card's model gives confidences."""
    if not card.has_confidence:
        raise BundleError(
            f"The bundle {card.name} {card.version} gives no confidence.",
            f"a model with the output {CONFIDENCE!r}",
            "Make one with `surgseg-export bundle --confidence`.",
        )


def available_cores() -> int:
    """Physical cores this process may use: its affinity, hyperthreads counted once, and its CPU quota."""
    return max(1, min(len(list_cores()), _cpu_quota()))


def list_cores() -> list[int]:
    """The first logical processor, counted from 0, of each physical core that this process may use."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    first: dict[str, int] = {}
    for cpu in sorted(allowed):
        first.setdefault(_siblings_of(cpu), cpu)
    return list(first.values())


def _siblings_of(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(
            encoding="ascii"
        )
    except OSError:
        return str(cpu)


def _cpu_quota() -> int:
    """Whole cores of the container's CPU quota (cgroup v2); as many as there are where it has none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return os.cpu_count() or 1
