"""Batches as a pure function of (seed, step), so that resuming equals never having stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from service.contract.geometry import Image, Mask
from service.errors import DataError
from training.config import DataConfig, Recipe
from training.data import open_data
from training.data.augment import change_appearance, paste_instruments, warp_to_canvas
from training.data.samples import Sample
from training.data.splits import select_part
from training.schedules import progressive_scale

CACHE_LIMIT_BYTES = 4 * 2**30
STRIDE = 32


@dataclass
class Pool:
    """The samples of one data set of a recipe, with how they are drawn."""

    config: DataConfig
    samples: list[Sample]


def open_pools(configs: Sequence[DataConfig]) -> list[Pool]:
    """Read every data set of a recipe and select its part. Raises DataError where a frame has no mask."""
    pools = []
    for config in configs:
        samples = list(open_data(config.source))
        if config.split:
            samples = select_part(samples, config.split, config.part)
        unlabeled = next((sample for sample in samples if sample.load_mask is None), None)
        if unlabeled is not None:
            raise DataError(
                f"{config.source} is unlabeled (first {unlabeled.sample_id}).",
                "a mask for every frame",
                "Label it.",
            )
        pools.append(Pool(config, samples))
    return pools


class LabeledBatches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is that step's batch: pictures uint8 `(N, 3, H, W)` and class ids int64 `(N, H, W)`.

    Pictures are kept decoded in memory while they fit into 4 GiB.
    """

    def __init__(self, pools: Sequence[Pool], recipe: Recipe) -> None:
        self._recipe = recipe
        self._samples = [(sample, pool.config) for pool in pools for sample in pool.samples]
        weights = np.concatenate([np.full(len(p.samples), p.config.weight / len(p.samples)) for p in pools])
        self._probabilities = weights / weights.sum()
        self._cache: dict[int, tuple[Image, Mask]] = {}

    def __len__(self) -> int:
        return self._recipe.steps

    def load_all(self) -> None:
        """Decode everything that fits now, before worker processes are forked, so that they share the memory."""
        used = 0
        for index in range(len(self._samples)):
            image_hwc, mask_hw = self._load(index)
            used += image_hwc.nbytes + mask_hw.nbytes
            if used > CACHE_LIMIT_BYTES:
                return
            self._cache[index] = (image_hwc, mask_hw)

    def canvas(self, step: int) -> tuple[int, int]:
        """Height and width of the pictures at `step`, multiples of the encoder's stride."""
        scale = progressive_scale(step, self._recipe.steps, self._recipe.progressive)
        size = self._recipe.input_size
        return _round(size.height * scale), _round(size.width * scale)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        canvas = self.canvas(step)
        images = np.empty((self._recipe.batch_size, *canvas, 3), np.uint8)
        masks = np.empty((self._recipe.batch_size, *canvas), np.int64)
        for position in range(self._recipe.batch_size):
            rng = np.random.default_rng([self._recipe.seed, step, position])
            images[position], masks[position] = self._draw(canvas, rng)
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks)

    def _draw(self, canvas: tuple[int, int], rng: np.random.Generator) -> tuple[Image, Mask]:
        config = self._recipe.augment
        image_hwc, mask_hw = self._warped(canvas, rng)
        if rng.random() < config.paste:
            image_hwc, mask_hw = paste_instruments(image_hwc, mask_hw, *self._warped(canvas, rng))
        return change_appearance(image_hwc, mask_hw, config, rng)

    def _warped(self, canvas: tuple[int, int], rng: np.random.Generator) -> tuple[Image, Mask]:
        index = int(rng.choice(len(self._samples), p=self._probabilities))
        image_hwc, mask_hw = self._cache.get(index) or self._load(index)
        aspect = self._samples[index][1].aspect
        return warp_to_canvas(image_hwc, mask_hw, canvas, aspect, self._recipe.augment, rng)

    def _load(self, index: int) -> tuple[Image, Mask]:
        image_hwc, mask_hw = self._samples[index][0].load()
        assert mask_hw is not None  # open_pools refuses unlabeled frames
        return image_hwc, mask_hw


def make_loader(batches: LabeledBatches, first_step: int, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches from `first_step` to the end, in order, prepared ahead by worker processes."""
    # OpenCV's own threads would fight the trainer for the cores. They must end here: in a forked worker, asking a pool
    # that did not survive the fork to end waits for ever.
    cv2.setNumThreads(1)
    steps = range(first_step, len(batches))
    return DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its own: starting a loader must not advance the run's random state
        pin_memory=torch.cuda.is_available(),
    )


def _round(pixels: float) -> int:
    return max(STRIDE, round(pixels / STRIDE) * STRIDE)
