"""Batches as a pure function of (seed, step, turn), so that resuming equals never having stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from service.contract.geometry import Image, Mask
from service.errors import DataError
from training.config import DataConfig, Recipe
from training.data.augment import (
    change_appearance,
    draw_warp,
    find_origin,
    paste_instruments,
    warp,
    warp_to_canvas,
)
from training.data.samples import Sample
from training.data.screening import screen
from training.data.selection import open_frames
from training.data.splits import take_share, take_videos
from training.distributed import ALONE, Processes
from training.schedules import progressive_scale

CACHE_LIMIT_BYTES = 4 * 2**30
STRIDE = 32
# the second entry of a generator's seed, so that labeled and unlabeled pictures are drawn independently
LABELED, UNLABELED = 0, 1


@dataclass
class Pool:
    """The samples of one data set of a recipe, with how they are drawn."""

    config: DataConfig
    samples: list[Sample]


class PictureBatch(NamedTuple):
    """One step's pictures as uint8 `(N, 3, H, W)`, class ids int64 `(N, H, W)`; see training.method.UnlabeledBatch."""

    images: Tensor
    targets: Tensor
    weak: Tensor | None = None
    strong: tuple[Tensor, ...] = ()
    visible: tuple[Tensor, ...] = ()
    known: Tensor | None = None
    origins: Tensor | None = None


def open_pools(configs: Sequence[DataConfig], labeled: bool = True, quiet: bool = False) -> list[Pool]:
    """Read every data set of a recipe and select its part. Raises DataError where a labeled frame has no mask.

    `quiet` does not print what screening left out.
    """
    pools = []
    for config in configs:
        samples = open_frames(config.source, config.split, config.part, config.labels)
        if config.share < 1:
            take = take_videos if config.share_of == "videos" else take_share
            samples = take(samples, config.share, config.share_seed)
        if config.screen:
            samples = _screen(samples, config, quiet)
        unlabeled = next((sample for sample in samples if sample.load_mask is None), None)
        if labeled and unlabeled is not None:
            raise DataError(
                f"{config.source} is unlabeled (first {unlabeled.sample_id}).",
                "a mask for every frame",
                "Label it, or name it under [[unlabeled]].",
            )
        pools.append(Pool(config, samples))
    return pools


class Drawer:
    """Draws frames of several pools by their weights; keeps them decoded in memory while they fit."""

    def __init__(self, pools: Sequence[Pool], parts: int = 1, seed: int = 0) -> None:
        """`parts` cuts the frames of every pool at random into that many disjoint parts. Raises DataError."""
        self._samples = [(sample, pool.config) for pool in pools for sample in pool.samples]
        weights = [np.full(len(p.samples), p.config.weight / len(p.samples)) for p in pools]
        rng = np.random.default_rng(seed)
        part_of = np.concatenate([rng.permutation(len(p.samples)) % parts for p in pools])
        self._probabilities = []
        for part in range(parts):
            chances = np.concatenate(weights) * (part_of == part)
            if not chances.any():
                raise DataError(
                    f"There are {len(self._samples)} labeled frames for {parts} disjoint parts.",
                    "at least one labeled frame for each part",
                    "Label more frames, or use a method of one network.",
                )
            self._probabilities.append(chances / chances.sum())
        self._cache: dict[int, tuple[Image, Mask | None]] = {}

    def load_all(self, limit_bytes: int, with_masks: bool) -> int:
        """Decode everything that fits now, before worker processes are forked, so that they share the memory.

        Gives the bytes it took.
        """
        used = 0
        for index, (sample, _) in enumerate(self._samples):
            image_hwc, mask_hw = sample.load() if with_masks else (sample.load_image(), None)
            used += image_hwc.nbytes + (0 if mask_hw is None else mask_hw.nbytes)
            if used > limit_bytes:
                break
            self._cache[index] = (image_hwc, mask_hw)
        return used

    def draw(self, rng: np.random.Generator, part: int = 0) -> tuple[Image, Mask, DataConfig]:
        """One frame of a part, its mask (all zero for an unlabeled one), and the data it is from."""
        index = int(rng.choice(len(self._samples), p=self._probabilities[part]))
        sample, config = self._samples[index]
        image_hwc, mask_hw = self._cache.get(index) or sample.load()
        return image_hwc, np.zeros(image_hwc.shape[:2], np.uint8) if mask_hw is None else mask_hw, config


class TrainingBatches(Dataset[PictureBatch | DataError]):
    """Item `step * accumulate + turn` is a step's batch, by its turn; of several processes each has its part of it.

    Where a file cannot be read the item is the error: raised in a loader's worker, it would arrive as a traceback.
    """

    def __init__(
        self,
        recipe: Recipe,
        labeled: Sequence[Pool],
        unlabeled: Sequence[Pool],
        parts: int = 1,
        strong_views: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self._recipe = recipe
        self._processes = processes
        self._parts = parts
        self._strong_views = strong_views
        self._labeled = Drawer(labeled, parts, recipe.seed)
        self._unlabeled = Drawer(unlabeled) if strong_views else None

    def __len__(self) -> int:
        return self._recipe.steps * self._recipe.accumulate

    def load_all(self) -> None:
        """Decode into memory what fits into 4 GiB. Raises DataError naming a file that cannot be read."""
        limit_bytes = CACHE_LIMIT_BYTES // self._processes.local_count
        used = self._labeled.load_all(limit_bytes, with_masks=True)
        if self._unlabeled is not None:
            self._unlabeled.load_all(limit_bytes - used, with_masks=False)

    def canvas(self, step: int) -> tuple[int, int]:
        """Height and width of the pictures at `step`, multiples of the encoder's stride."""
        scale = progressive_scale(step, self._recipe.steps, self._recipe.progressive)
        size = self._recipe.input_size
        return _round(size.height * scale), _round(size.width * scale)

    def __getitem__(self, item: int) -> PictureBatch | DataError:
        try:
            return self._make_batch(item)
        except DataError as error:
            return error

    def _make_batch(self, item: int) -> PictureBatch:
        step, turn = divmod(item, self._recipe.accumulate)
        canvas, count = self.canvas(step), self._recipe.batch_size
        drawn = []
        for position in self._processes.part_of(count):
            rng = np.random.default_rng([self._recipe.seed, step, turn * count + position, LABELED])
            drawn.append(self._draw_labeled(canvas, position * self._parts // count, rng))
        images, targets = zip(*drawn, strict=True)
        batch = PictureBatch(_stack_images(images), torch.from_numpy(np.stack(targets).astype(np.int64)))
        if self._unlabeled is None:
            return batch
        count = self._recipe.unlabeled_batch_size
        positions = (turn * count + position for position in self._processes.part_of(count))
        rngs = (np.random.default_rng([self._recipe.seed, step, i, UNLABELED]) for i in positions)
        views, origins = zip(*(self._draw_unlabeled(canvas, rng) for rng in rngs), strict=True)
        weak, *strong = zip(*views, strict=True)
        return batch._replace(
            weak=_stack_images([image for image, _ in weak]),
            known=torch.from_numpy(np.stack([known for _, known in weak]).astype(np.int64)),
            strong=tuple(_stack_images([image for image, _ in view]) for view in strong),
            visible=tuple(torch.from_numpy(np.stack([seen for _, seen in view]) > 0) for view in strong),
            origins=torch.from_numpy(np.stack(origins)),
        )

    def _draw_labeled(
        self, canvas: tuple[int, int], part: int, rng: np.random.Generator
    ) -> tuple[Image, Mask]:
        config = self._recipe.augment
        image_hwc, mask_hw = self._warped(self._labeled, canvas, part, rng)
        if rng.random() < config.paste:
            other = self._warped(self._labeled, canvas, part, rng)
            image_hwc, mask_hw = paste_instruments(image_hwc, mask_hw, *other, config, rng)
        return change_appearance(image_hwc, mask_hw, config, rng)

    def _draw_unlabeled(
        self, canvas: tuple[int, int], rng: np.random.Generator
    ) -> tuple[list[tuple[Image, Mask]], np.ndarray]:
        """The weak view with the classes of what was pasted, each strong one with 1 where it is visible; and where
        their pixels were in the picture."""
        assert self._unlabeled is not None
        config = self._recipe.strong
        whole_hwc, mask_hw, data = self._unlabeled.draw(rng)
        matrix = draw_warp(mask_hw.shape, canvas, data.aspect, self._recipe.augment, rng)
        image_hwc, _ = warp(whole_hwc, mask_hw, canvas, matrix)
        known_hw = np.zeros(canvas, np.uint8)
        if rng.random() < config.paste:
            pasted = self._warped(self._labeled, canvas, int(rng.integers(self._parts)), rng)
            image_hwc, known_hw = paste_instruments(image_hwc, known_hw, *pasted, config, rng)
        everything = np.ones(canvas, np.uint8)
        strong = [change_appearance(image_hwc, everything, config, rng) for _ in range(self._strong_views)]
        return [(image_hwc, known_hw), *strong], find_origin(matrix, mask_hw.shape)

    def _warped(
        self, drawer: Drawer, canvas: tuple[int, int], part: int, rng: np.random.Generator
    ) -> tuple[Image, Mask]:
        image_hwc, mask_hw, data = drawer.draw(rng, part)
        return warp_to_canvas(image_hwc, mask_hw, canvas, data.aspect, self._recipe.augment, rng)


def gather_batch(part: PictureBatch, processes: Processes) -> PictureBatch:
    """The whole batch from every process's part of it."""

    def gather(values: Tensor | tuple[Tensor, ...] | None) -> Any:
        if isinstance(values, Tensor):
            return processes.gather(values)
        return None if values is None else tuple(processes.gather(view) for view in values)

    return PictureBatch(*(gather(values) for values in part))


def make_loader(
    batches: TrainingBatches, first_item: int, workers: int
) -> DataLoader[PictureBatch | DataError]:
    """Batches from `first_item` to the end, in order, prepared ahead by worker processes."""
    # OpenCV's own threads would fight the trainer for the cores. They must end here: in a forked worker, asking a pool
    # that did not survive the fork to end waits for ever.
    cv2.setNumThreads(1)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_item, len(batches)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its own: starting a loader must not advance the run's random state
        pin_memory=torch.cuda.is_available(),
    )


def _screen(samples: list[Sample], config: DataConfig, quiet: bool) -> list[Sample]:
    screening = screen(samples)
    if not quiet:
        print(f"{config.source}: {screening.describe()}")
    if not screening.kept:
        raise DataError(
            f"Screening leaves no frame of {config.source}: {screening.describe()}.",
            "frames that show tissue",
            "Look at what is there with `surgseg-train data screen`, or set screen = false.",
        )
    return screening.kept


def _stack_images(images: Sequence[Image]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _round(pixels: float) -> int:
    return max(STRIDE, round(pixels / STRIDE) * STRIDE)
