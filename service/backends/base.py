"""What every backend keeps to, and the checks of their input that they share."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Bundle
from service.contract.model_card import CONFIDENCE, MASK, InputSize, ModelCard, Precision
from service.errors import BackendError, BundleError
from service.processors import computes_int8

GOLDEN_AGREEMENT: dict[Precision, float] = {
    "float32": 0.999,
    "float16": 0.995,
    "bfloat16": 0.995,
    "int8": 0.99,
}
"""The share of the golden picture's labels that each precision must give. A wrong layout or normalisation moves far
more of them than rounding does."""

Images = NDArray[np.uint8]
Masks = NDArray[np.uint8]
Confidences = NDArray[np.uint8]


class Backend(Protocol):
    """An opened model. One thread opens and closes it; `concurrency` threads may use it at once."""

    name: str
    precision: Precision
    version: str
    """Of the runtime."""
    batch_sizes: tuple[int, ...]
    """Batch sizes it was opened for, ascending; `segment` takes no other."""
    concurrency: int
    """How many calls of `segment` are worth making at once, from as many threads."""

    def segment(self, images_nhwc: Images, *, is_urgent: bool = True) -> Masks:
        """Class ids uint8 `(N, H, W)` of RGB uint8 `(N, H, W, 3)`, C-contiguous, N one of `batch_sizes`.

        What is not urgent may take longer where that costs less processor time. The result may lie in a buffer of the
        backend's own and is valid until the same thread's next call. Raises ValueError for images of another form,
        BackendError when the runtime fails.
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
    """A backend's class, seen as the function that opens a bundle at one of `precisions`."""

    precisions: tuple[Precision, ...]
    """All that the runtime can compute in, the fastest first."""

    def __call__(
        self, bundle: Bundle, *, batch_sizes: tuple[int, ...], threads: int | None, precision: Precision
    ) -> Backend: ...

    def reason_against(self, bundle: Bundle, precision: Precision) -> str | None:
        """Why this machine does not run the bundle at one of `precisions`, in words; None where it does."""
        ...


def list_precisions(factory: BackendFactory, bundle: Bundle) -> list[Precision]:
    """The precisions at which a backend runs the bundle on this machine, the fastest first."""
    return [each for each in factory.precisions if factory.reason_against(bundle, each) is None]


def reason_against_graph(bundle: Bundle, precision: Precision) -> str | None:
    """Why the bundle has no graph to compute in a precision, in words; None where it has one."""
    if precision in bundle.card.models or precision == "bfloat16":
        return None
    return f"the bundle has no graph in {precision} (`surgseg-export quantize` makes one)"


def reason_against_int8() -> str | None:
    """Why this machine's processor does not run int8, in words; None where it does."""
    return None if computes_int8() else "this processor has no dot product of bytes (VNNI)"


def is_golden(bundle: Bundle, precision: Precision, masks_nhw: Masks) -> bool:
    """Whether masks of the golden picture have as many of its labels as that precision must give."""
    return measure_golden(bundle, masks_nhw) >= GOLDEN_AGREEMENT[precision]


def measure_golden(bundle: Bundle, masks_nhw: Masks) -> float:
    """The share of the golden mask's labels that each of `masks_nhw` has, of the worst of them."""
    return float((masks_nhw == bundle.golden_mask_hw).mean(axis=(1, 2)).min())


class Occupancy:
    """Knows how many threads are inside. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    @contextmanager
    def enter(self) -> Iterator[bool]:
        """Be inside; gives whether nobody else was when we came."""
        with self._lock:
            self._inside += 1
            is_alone = self._inside == 1
        try:
            yield is_alone
        finally:
            with self._lock:
                self._inside -= 1


class SlowCompiler:
    """A backend whose runtime compiles for long, but takes up what lies compiled in the folder of `reusing`."""

    compiled_folder: ClassVar[Path | None] = None

    @classmethod
    def reusing(cls, folder: Path) -> type[Self]:
        """The same backend that leaves in a folder what it compiles, and takes from there what it would compile."""
        return type(cls.__name__, (cls,), {"compiled_folder": folder})


class GraphBackend(ABC):
    """What backends that run a bundle's graph have in common: checks, outputs by name, who is inside."""

    def __init__(
        self, bundle: Bundle, batch_sizes: tuple[int, ...], threads: int, precision: Precision
    ) -> None:
        self.precision = precision
        self.batch_sizes = batch_sizes
        self.concurrency = min(threads, batch_sizes[-1])
        self._card = bundle.card
        self._occupancy = Occupancy()
        self._is_open = True

    def segment(self, images_nhwc: Images, *, is_urgent: bool = True) -> Masks:
        """See `Backend.segment`."""
        return self._run([MASK], images_nhwc, is_urgent)[0]

    def segment_with_confidence(self, images_nhwc: Images) -> tuple[Masks, Confidences]:
        """See `Backend.segment_with_confidence`."""
        require_confidence(self._card)
        masks_nhw, confidences_nhw = self._run([MASK, CONFIDENCE], images_nhwc)
        return masks_nhw, confidences_nhw

    def close(self) -> None:
        """See `Backend.close`."""
        self._is_open = False

    @abstractmethod
    def _infer(self, outputs: list[str], images_nhwc: Images, is_spread: bool) -> list[NDArray[np.uint8]]:
        """Those outputs of checked images, on all threads if `is_spread`, else on a share. Raises BackendError."""

    def _run(
        self, outputs: list[str], images_nhwc: Images, is_urgent: bool = True
    ) -> list[NDArray[np.uint8]]:
        check_images(images_nhwc, self._card.input_size, self.batch_sizes)
        with self._occupancy.enter() as is_alone:
            if not self._is_open:
                raise BackendError("The backend is closed.", "an open backend", "Open the bundle again.")
            return self._infer(outputs, images_nhwc, is_alone and is_urgent)


def check_images(images_nhwc: Images, size: InputSize, batch_sizes: tuple[int, ...]) -> None:
    """Raise ValueError unless the images have the form that `Backend.segment` states."""
    if images_nhwc.dtype != np.uint8 or not images_nhwc.flags.c_contiguous:
        raise ValueError(f"images are contiguous uint8, got {images_nhwc.dtype} {images_nhwc.strides}")
    expected = (size.height, size.width, 3)
    if images_nhwc.shape[1:] != expected or images_nhwc.shape[0] not in batch_sizes:
        raise ValueError(f"images are {batch_sizes} x {expected}, got {images_nhwc.shape}")


def first_line(error: Exception) -> str:
    """What a runtime's exception says, without its stack of calls."""
    return (str(error).strip().splitlines() or [error.__class__.__name__])[0].rstrip(".")


def require_confidence(card: ModelCard) -> None:
    """Raise BundleError unless the card's model gives confidences."""
    if not card.has_confidence:
        raise BundleError(
            f"The bundle {card.name} {card.version} gives no confidence.",
            f"a model with the output {CONFIDENCE!r}",
            "Make one with `surgseg-export bundle --confidence`.",
        )
