"""Self-ensembling contrastive learning (Xiang, Li, Wang, Xia, Zhang, 2021, arXiv 2105.12924)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as functional
from pydantic import Field, field_validator
from torch import Tensor

from service.errors import DataError
from training.averaged_networks import AverageOptions, OneNetwork
from training.config import NetworkConfig, Positive, Share, Weight
from training.contrast_samples import (
    CellRule,
    Samples,
    average_groups,
    draw_from_groups,
    find_regions,
    label_cells,
    see_cells,
    take_cells,
)
from training.ema import WeightAverage
from training.key_memory import KeyMemory
from training.labeled_loss import LabeledLossOptions, labeled_losses
from training.losses.consistency import soft_cross_entropy, teach
from training.losses.group_contrast import NO_GROUP, pull_groups_together
from training.losses.pseudo_label import predict
from training.losses.segmentation import IGNORED
from training.method import Batch, UnlabeledBatch
from training.networks import measure_features
from training.networks.contrast_heads import VectorProjector
from training.schedules import ramp_up


class SelfEnsemblingContrastiveOptions(AverageOptions, LabeledLossOptions):
    """`contrast_weight` is reached after `ramp_steps`; set these to a third of the run's steps.

    `average_decay` is that of the teacher, encoder and all, and of its projection head. `consistency_weight` adds Mean
    Teacher's term, which the source does not name.

    Both samplings: `feature_stride` says which of the encoder's maps is contrasted, `projection_width` the length of
    the vectors, `memory` how many keys of each region or class are kept from past batches, `unlabeled_view` what the
    student sees (the teacher sees the weak view), `cell_rule` what decides for a cell of the map: the pixel in its
    middle, or the mean over the cell.

    `region`: `grid` is the rows and columns of regions.

    `anatomical`: `labels_from` says who makes the pseudo-labels, a cell with a lower probability than `confidence` has
    none, `positions` is how many cells of each class a batch gives, as queries and as keys. `background` is a class
    like others, or gives keys that repel only. `keys_from` "both" adds keys of the labeled pictures, by their labels.
    """

    average_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99  # never 0: the average is the teacher
    sampling: Literal["region", "anatomical"] = "anatomical"
    contrast_weight: Weight = 0.1
    consistency_weight: Weight = 0.0
    ramp_steps: Annotated[int, Field(ge=0)] = 500
    temperature: Annotated[float, Field(gt=0)] = 0.1
    feature_stride: Positive = 8
    projection_width: Positive = 128
    memory: Annotated[int, Field(ge=0)] = 128
    unlabeled_view: Literal["strong", "weak"] = "strong"
    cell_rule: CellRule = "centre"
    grid: tuple[Positive, Positive] = (4, 4)
    labels_from: Literal["teacher", "student"] = "teacher"
    confidence: Share = 0.8
    positions: Positive = 64
    background: Literal["class", "negatives"] = "class"
    keys_from: Literal["unlabeled", "both"] = "unlabeled"

    @field_validator("grid")
    @classmethod
    def _refuse_one_region(cls, grid: tuple[int, int]) -> tuple[int, int]:
        if grid == (1, 1):
            raise ValueError("a single region has nothing to be told from")
        return grid


class _Taught(NamedTuple):
    """What the teacher says: its encoder's map of the unlabeled pictures (and then of the labeled ones, where they give
    keys too), and its probabilities of the unlabeled ones, where they are needed."""

    maps_nchw: Tensor
    probabilities_mchw: Tensor | None


class SelfEnsemblingContrastive(OneNetwork):
    """The student's features of unlabeled pictures are drawn to the teacher's of the same region or class.

    Dice and cross-entropy on labels, and InfoNCE (losses/group_contrast.py) between the student encoder's features as
    queries and those of the teacher encoder, its moving average, as keys, each behind a projection head; the teacher's
    head is the average of the student's. Two ways to say which features belong together:
    - region-aware: the mean feature of a region of the field of view, and that of the same region in any picture;
    - anatomical-aware: features of cells with the same pseudo-label, equally many of each class.
    Keys of past batches are kept for each region or class.

    Only the paper's abstract could be read. Our choices beyond it: everything in the options; the average of the whole
    network makes the pseudo-labels and predicts, as with every method here, so its encoder is the teacher encoder;
    regions are those of the picture before augmentation moved it; cells that a strong view hides are no queries; the
    heads see single vectors, so BatchNorm has no place in them; each class and region weighs the same.
    """

    options_class = SelfEnsemblingContrastiveOptions
    options: SelfEnsemblingContrastiveOptions
    average_name: ClassVar[str] = "teacher"
    teacher: WeightAverage
    strong_views: ClassVar[int] = 1

    def __init__(
        self, options: SelfEnsemblingContrastiveOptions, network: NetworkConfig, classes: int
    ) -> None:
        super().__init__(options, network, classes)
        features = measure_features(self.network)
        if options.feature_stride not in features:
            raise DataError(
                f"The encoder has no features at stride {options.feature_stride}.",
                f"one of {', '.join(map(str, features))}",
                "Set method.feature_stride to one of them.",
            )
        self._level, channels = features[options.feature_stride]
        rows, columns = options.grid
        self._groups = rows * columns if options.sampling == "region" else classes
        if options.contrast_weight:  # a head without its term would hold parameters without gradient
            self.projector = VectorProjector(channels, options.projection_width)
            self.teacher_projector = WeightAverage(self.projector, options.average_decay)
            self.memory = KeyMemory(self._groups, options.memory, options.projection_width)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options, unlabeled = self.options, batch.require_unlabeled("self_ensembling_contrastive")
        pictures_nchw, visible_mhw = self._see(unlabeled)
        labeled, size = len(batch.images_nchw), batch.images_nchw.shape[2:]
        # together, so that BatchNorm's statistics are those of labeled and unlabeled pictures alike
        maps = self.network.features(torch.cat([batch.images_nchw, pictures_nchw]))
        decoded = len(maps[0]) if options.consistency_weight else labeled
        logits_nchw = self.network.head([values[:decoded] for values in maps], size)
        terms = labeled_losses(logits_nchw[:labeled], batch.targets_nhw, options)
        ramp, taught = ramp_up(step, options.ramp_steps), self._ask_teacher(batch, unlabeled)
        if options.contrast_weight:
            cells = maps[self._level][labeled:]
            contrast = self._contrast(cells, taught, unlabeled, visible_mhw, batch.targets_nhw)
            terms["contrast"] = options.contrast_weight * ramp * contrast
        if options.consistency_weight:
            apart = soft_cross_entropy(logits_nchw[labeled:], taught.probabilities_mchw, visible_mhw)
            terms["consistency"] = options.consistency_weight * ramp * apart
        return terms

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if self.options.contrast_weight:
            self.teacher_projector.update(self.projector)

    def _see(self, unlabeled: UnlabeledBatch) -> tuple[Tensor, Tensor]:
        """The unlabeled pictures as the student sees them, and what is visible in them."""
        if self.options.unlabeled_view == "weak":
            return unlabeled.weak_nchw, torch.ones_like(unlabeled.visible_nhw[0])
        return unlabeled.strong_nchw[0], unlabeled.visible_nhw[0]

    @torch.no_grad()
    def _ask_teacher(self, batch: Batch, unlabeled: UnlabeledBatch) -> _Taught:
        options, teacher = self.options, self.teacher.average
        pictures_nchw, count = unlabeled.weak_nchw, len(unlabeled.weak_nchw)
        if options.sampling == "anatomical" and options.keys_from == "both":
            pictures_nchw = torch.cat([pictures_nchw, batch.images_nchw])
        maps = teacher.features(pictures_nchw)
        labels = options.sampling == "anatomical" and options.labels_from == "teacher"
        if not (labels or options.consistency_weight):
            return _Taught(maps[self._level], None)
        logits_mchw = teacher.head([values[:count] for values in maps], pictures_nchw.shape[2:])
        return _Taught(maps[self._level], teach(logits_mchw, unlabeled.known_nhw))

    def _contrast(
        self,
        maps_mchw: Tensor,
        taught: _Taught,
        unlabeled: UnlabeledBatch,
        visible_mhw: Tensor,
        targets_nhw: Tensor,
    ) -> Tensor:
        cells, size = maps_mchw.shape[2:], visible_mhw.shape[1:]
        is_seen = see_cells(visible_mhw, cells, self.options.cell_rule)
        regions_mp = find_regions(unlabeled.origins_m23, size, cells, self.options.grid)
        if self.options.sampling == "region":
            queries = average_groups(
                take_cells(maps_mchw), regions_mp.masked_fill(~is_seen, NO_GROUP), self._groups
            )
            keys = average_groups(take_cells(taught.maps_nchw), regions_mp, self._groups)
        else:
            classes_mp = self._label(taught, unlabeled, cells).masked_fill(regions_mp == NO_GROUP, NO_GROUP)
            queries = self._draw_queries(take_cells(maps_mchw), classes_mp.masked_fill(~is_seen, NO_GROUP))
            keys = self._draw_keys(take_cells(taught.maps_nchw), classes_mp, targets_nhw, cells)
        return self._compare(queries, keys)

    @torch.no_grad()
    def _label(self, taught: _Taught, unlabeled: UnlabeledBatch, cells: tuple[int, int]) -> Tensor:
        """The pseudo-labels of the unlabeled pictures' cells, int64 `(M, P)`."""
        probabilities_mchw = taught.probabilities_mchw
        if self.options.labels_from == "student":
            logits_mchw = predict(self.network, unlabeled.weak_nchw)
            probabilities_mchw = teach(logits_mchw, unlabeled.known_nhw)
        return label_cells(probabilities_mchw, cells, self.options.cell_rule, self.options.confidence)

    def _draw_queries(self, cells_mpc: Tensor, classes_mp: Tensor) -> Samples:
        if self.options.background == "negatives":
            classes_mp = classes_mp.masked_fill(classes_mp == 0, NO_GROUP)
        return draw_from_groups(cells_mpc, classes_mp, self._groups, self.options.positions)

    def _draw_keys(
        self, cells_mpc: Tensor, classes_mp: Tensor, targets_nhw: Tensor, cells: tuple[int, int]
    ) -> Samples:
        """Keys of the unlabeled pictures' classes, and of the labeled ones' where the teacher was shown them too."""
        if self.options.keys_from == "both":
            known_nchw = functional.one_hot(targets_nhw.clamp(min=0), self.classes).movedim(-1, 1)
            certain_nchw = (known_nchw * (targets_nhw != IGNORED)[:, None]).float()
            known_np = label_cells(certain_nchw, cells, self.options.cell_rule, self.options.confidence)
            classes_mp = torch.cat([classes_mp, known_np])
        return draw_from_groups(cells_mpc, classes_mp, self._groups, self.options.positions)

    def _compare(self, queries: Samples, keys: Samples) -> Tensor:
        """The contrast of the projected queries with this batch's keys and those of past ones; remembers the keys."""
        queries_vd = self.projector(queries.vectors_vc)
        with torch.no_grad():
            fresh_kd = functional.normalize(self.teacher_projector.average(keys.vectors_vc).float(), dim=1)
        kept_kd, kept_groups = self.memory.recall()
        self.memory.store(fresh_kd, keys.groups_v)
        keys_kd, key_groups = torch.cat([fresh_kd, kept_kd]), torch.cat([keys.groups_v, kept_groups])
        return pull_groups_together(
            queries_vd, queries.groups_v, keys_kd, key_groups, self.options.temperature
        )
