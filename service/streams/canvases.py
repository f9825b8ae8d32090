"""Pictures at the model's size in memory that a decoder and the service share.

The memory has no name: it belongs to the file descriptors that hold it, and is gone with the last of them, however
the processes end.
"""

from __future__ import annotations

import mmap
import os

import numpy as np

from service.contract.geometry import Image
from service.contract.model_card import InputSize

_HEADER_BYTES = 64  # one cache line for each slot's generation


class Canvases:
    """`count` slots, each a uint8 RGB `(H, W, 3)` picture with a generation number.

    The writer makes the number odd while it writes and even when it is done, so the reader knows whether what it
    copied is whole and is the picture that it was told of. One process writes, another reads.
    """

    def __init__(self, memory_fd: int, count: int, size: InputSize) -> None:
        """Map the memory of `memory_fd`, which the caller still has to close; it is made large enough."""
        self.count = count
        shape = (count, size.height, size.width, 3)
        length = count * (_HEADER_BYTES + size.height * size.width * 3)
        if os.fstat(memory_fd).st_size < length:
            os.ftruncate(memory_fd, length)
        self._memory = mmap.mmap(memory_fd, length)
        headers = np.frombuffer(self._memory, np.uint64, count * _HEADER_BYTES // 8)
        self._generations = headers[:: _HEADER_BYTES // 8]
        self._pictures_nhwc = np.frombuffer(self._memory, np.uint8, offset=count * _HEADER_BYTES).reshape(
            shape
        )

    def begin(self, slot: int) -> Image:
        """The canvas of a slot to write on, until `finish`."""
        self._generations[slot] |= np.uint64(1)
        canvas_hwc: Image = self._pictures_nhwc[slot]
        return canvas_hwc

    def finish(self, slot: int) -> int:
        """The picture is whole; gives its generation."""
        self._generations[slot] += np.uint64(1)
        return int(self._generations[slot])

    def copy(self, slot: int, generation: int) -> Image | None:
        """The picture of that generation; None where the slot holds another one by now, or half of one."""
        if not 0 <= slot < self.count or int(self._generations[slot]) != generation:
            return None
        copied_hwc = self._pictures_nhwc[slot].copy()
        return copied_hwc if int(self._generations[slot]) == generation else None


def create_memory() -> int:
    """A file descriptor of memory without a name, to be passed to a child."""
    return os.memfd_create("surgseg-canvases", 0)
