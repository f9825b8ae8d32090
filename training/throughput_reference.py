"""Min-Max Similarity trained the way its released code is described to do it: what our speed is compared with.

A plain transcription of the procedure, with the project's own losses: batch 1 per stream, float32, contiguous tensors,
every picture read and augmented with PIL and torchvision in the training process, each stream a forward pass of its
own, two Adam optimisers for the networks and none for the heads. It is for measuring, not for training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from training.checkpoint import DEVIATION, MEAN
from training.config import Recipe
from training.data.samples import Sample
from training.losses.contrast import draw_positions, pull_same_positions, push_all_apart, take_positions
from training.losses.structure import class_log_odds, structure_loss
from training.networks import build_network
from training.networks.contrast_heads import Classifier, Projector

POSITIONS = 2304  # what the released code is written for
TEMPERATURE = 0.07
WEIGHT = 0.25


class ReleasedLoop:
    """Two networks, one labeled picture of its own for each and one unlabeled picture for both, a step."""

    pictures_per_step = 3
    passes_per_step = 4

    def __init__(
        self, recipe: Recipe, labeled: Sequence[Sample], unlabeled: Sequence[Sample], device: torch.device
    ) -> None:
        classes = len(recipe.classes)
        self.device = device
        self._size = (recipe.input_size.width, recipe.input_size.height)
        self._streams = (labeled[::2], labeled[1::2], unlabeled)
        self._random = random.Random(recipe.seed)
        self._strong = strong_augmentation()
        self._networks = [
            build_network(recipe.network.name, classes, recipe.network.options).to(device).train()
            for _ in range(2)
        ]
        self._classifiers = [Classifier(classes - 1).to(device) for _ in range(2)]
        self._projectors = [Projector(classes - 1).to(device) for _ in range(2)]
        self._optimizers = [torch.optim.Adam(network.parameters(), lr=1e-4) for network in self._networks]

    def advance(self) -> float:
        """One update of both networks; gives the loss."""
        first, second, unlabeled = (self._random.choice(stream) for stream in self._streams)
        pictures = [self._read(sample) for sample in (first, second)]
        targets = [self._read_mask(sample) for sample in (first, second)]
        strong = self._to_input(self._strong(self._read(unlabeled)))
        labeled = [
            network(self._to_input(picture))
            for network, picture in zip(self._networks, pictures, strict=True)
        ]
        loss = WEIGHT * self._losses(labeled, targets, [network(strong) for network in self._networks])
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        return float(loss.detach())

    def _losses(self, labeled: list[Tensor], targets: list[Tensor], unlabeled: list[Tensor]) -> Tensor:
        structure = [structure_loss(*pair) for pair in zip(labeled, targets, strict=True)]
        apart = push_all_apart(*self._describe(self._classifiers, labeled), TEMPERATURE, "l1")
        first, second = (class_log_odds(logits).sigmoid() for logits in unlabeled)
        difference = (first - second).square().mean()
        together = pull_same_positions(
            *self._describe(self._projectors, unlabeled), TEMPERATURE, "l1", symmetric=False
        )
        return structure[0] + structure[1] + apart + difference + together

    def _describe(self, heads: Sequence[nn.Module], logits: list[Tensor]) -> list[Tensor]:
        maps = [head(class_log_odds(scores)) for head, scores in zip(heads, logits, strict=True)]
        positions = draw_positions(1, maps[0].shape[2] * maps[0].shape[3], POSITIONS)
        return [take_positions(vectors, positions) for vectors in maps]

    def _read(self, sample: Sample) -> Image.Image:
        return Image.fromarray(sample.load_image()).resize(self._size, Image.Resampling.BILINEAR)

    def _read_mask(self, sample: Sample) -> Tensor:
        assert sample.load_mask is not None
        resized = Image.fromarray(sample.load_mask()).resize(self._size, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(resized)).long()[None].to(self.device)

    def _to_input(self, picture: Image.Image) -> Tensor:
        tensor = transforms.functional.normalize(transforms.functional.to_tensor(picture), MEAN, DEVIATION)
        return tensor[None].to(self.device)


def strong_augmentation() -> transforms.Compose:
    """What the paper lists for unlabeled pictures: rotation, flip, affine, grayscale, blur, colour jitter, GridMask."""
    return transforms.Compose(
        [
            transforms.RandomRotation(90),
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(degrees=0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=10),
            transforms.RandomGrayscale(0.2),
            transforms.GaussianBlur(5),
            transforms.ColorJitter(0.4, 0.4, 0.4, 0.1),
            transforms.Lambda(_cover_grid),
        ]
    )


def _cover_grid(picture: Image.Image) -> Image.Image:
    """GridMask: black squares, half of each period wide."""
    image_hwc = np.array(picture)
    period = random.randint(32, 96)
    rows, columns = (np.arange(length) % period < period // 2 for length in image_hwc.shape[:2])
    image_hwc[np.outer(rows, columns)] = 0
    return Image.fromarray(image_hwc)
