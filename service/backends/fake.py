"""A backend without a model: it labels bright pixels. For load tests of everything but the model."""

from __future__ import annotations

import numpy as np

from service.backends.base import (
    Confidences,
    Images,
    Masks,
    check_images,
    require_confidence,
)
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.errors import BackendError

_THRESHOLD = 3 * 127


class FakeBackend:
    """Label 1 where the mean of R, G and B exceeds 127, else 0; surer the farther the mean is from that.

    It ignores the bundle's graph and threads.
    """

    name = "fake"
    version = ""
    precisions: tuple[Precision, ...] = ("float32",)

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_sizes: tuple[int, ...],
        threads: int | None,
        precision: Precision,
    ) -> None:
        self.precision = precision
        self.batch_sizes = batch_sizes
        self.concurrency = 1
        self._card = bundle.card
        self._is_open = True

    @staticmethod
    def reason_against(bundle: Bundle, precision: Precision) -> str | None:
        """See `BackendFactory.reason_against`."""
        return None

    def segment(self, images_nhwc: Images, *, is_urgent: bool = True) -> Masks:
        """See `Backend.segment`."""
        check_images(images_nhwc, self._card.input_size, self.batch_sizes)
        if not self._is_open:
            raise BackendError("The backend is closed.", "an open backend", "Open the bundle again.")
        masks_nhw: Masks = (images_nhwc.sum(axis=3, dtype=np.uint16) > _THRESHOLD).astype(np.uint8)
        return masks_nhw

    def segment_with_confidence(self, images_nhwc: Images) -> tuple[Masks, Confidences]:
        """See `Backend.segment_with_confidence`; 128 at the threshold, 255 where black or white."""
        require_confidence(self._card)
        masks_nhw = self.segment(images_nhwc)
        means_nhw = images_nhwc.mean(axis=3, dtype=np.float32)
        return masks_nhw, np.rint(127.5 + np.abs(means_nhw - 127.5)).astype(np.uint8)

    def close(self) -> None:
        """See `Backend.close`."""
        self._is_open = False
