"""The proof of an opened backend: the golden picture, at every batch size and in every way through it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from service.backends.base import GOLDEN_AGREEMENT, Backend, Images, is_golden, measure_golden
from service.contract.bundle import Bundle
from service.errors import BackendError

ENOUGH_TO_MEASURE = 8


def prove_backend(backend: Backend, bundle: Bundle, rounds: int = ENOUGH_TO_MEASURE) -> float:
    """Compare every mask of the golden picture, alone and then `rounds` times in as many calls at once as pay.

    Gives the processor time of one frame's inference over all threads, which matters when there is so much to do that
    calls are made at once; it is right only where nothing else runs in the process. Raises BackendError.
    """
    batch_nhwc = make_batch(backend, bundle)
    for batch_size in backend.batch_sizes:
        run_golden(backend, bundle, batch_nhwc, batch_size)

    def prove(_: int) -> None:
        own_nhwc = make_batch(backend, bundle)
        for _ in range(rounds):
            run_golden(backend, bundle, own_nhwc, batch_size)

    batch_size = backend.batch_sizes[0]
    # Calls made at once may take another way through the backend than one alone: it must give the same masks.
    with ThreadPoolExecutor(backend.concurrency) as pool:
        used_s = time.process_time()
        list(pool.map(prove, range(backend.concurrency)))
        used_s = time.process_time() - used_s
    return used_s / (rounds * backend.concurrency * batch_size)


def make_batch(backend: Backend, bundle: Bundle) -> Images:
    """An array for the largest batch, `(N, H, W, 3)`."""
    size = bundle.card.input_size
    return np.zeros((backend.batch_sizes[-1], size.height, size.width, 3), np.uint8)


def run_golden(backend: Backend, bundle: Bundle, batch_nhwc: Images, batch_size: int) -> None:
    """Fill a batch with the golden picture and compare every mask of it. Raises BackendError."""
    batch_nhwc[:batch_size] = bundle.golden_image_hwc
    masks_nhw = backend.segment(batch_nhwc[:batch_size])
    expected_shape = (batch_size, *bundle.golden_mask_hw.shape)
    if masks_nhw.shape != expected_shape or masks_nhw.dtype != np.uint8:
        raise BackendError(
            f"The backend {backend.name} gave {masks_nhw.dtype} {masks_nhw.shape}.",
            f"uint8 {expected_shape}",
            "Choose another backend with --backend.",
        )
    if not is_golden(bundle, backend.precision, masks_nhw):
        agreement = measure_golden(bundle, masks_nhw)
        raise BackendError(
            f"The backend {backend.name} in {backend.precision} gives {agreement:.2%} of the labels of the golden "
            "picture.",
            f"at least {GOLDEN_AGREEMENT[backend.precision]:.1%}",
            "Choose another backend with --backend, or make the bundle again and check it.",
        )
