"""Min-Max Similarity (Lou, Tawfik, Yao, Liu, Noble, IEEE TMI 42(10), 2023, arXiv 2203.15177)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from service.errors import DataError
from training.averaged_networks import TwoNetworks, TwoNetworksOptions
from training.config import NetworkConfig, Weight
from training.losses.consistency import CONSISTENCIES, teach
from training.losses.contrast import (
    Similarity,
    draw_positions,
    pull_same_positions,
    push_all_apart,
    take_positions,
)
from training.losses.structure import class_log_odds, structure_loss
from training.method import Batch, UnlabeledBatch
from training.networks.contrast_heads import Classifier, Projector
from training.schedules import ramp_up

Pair = list[Tensor]  # what the first and the second network give


class MinMaxSimilarityOptions(TwoNetworksOptions):
    """The four weights are the paper's l1 to l4; those of the unlabeled terms are reached after `ramp_steps`.

    `consistency` is how the two predictions of an unlabeled picture are compared. `similarity` is the norm that vectors
    are divided by, `positions` how many of a picture are compared, `symmetric` contrasts each view with the other.
    `heads` are trained with the networks or stay as they were drawn (the paper's Algorithm 1). `unlabeled_view` is
    what both networks see of an unlabeled picture. `teachers`: each agrees with the other one on that view, as in the
    paper, or with the average of the other's weights on the weak view. `labels`: the networks learn from disjoint
    halves of the labeled frames, as in the paper, or both from all of them, of which each draws other pictures.
    """

    supervised_weight: Weight = 1.0
    min_weight: Weight = 0.05
    consistency_weight: Weight = 1.0
    consistency: Literal["squared", "cross_entropy"] = "cross_entropy"
    max_weight: Weight = 0.05
    ramp_steps: Annotated[int, Field(ge=0)] = 500
    similarity: Similarity = "l2"
    symmetric: bool = True
    heads: Literal["trained", "frozen"] = "trained"
    temperature: Annotated[float, Field(gt=0)] = 0.07
    positions: Annotated[int, Field(ge=2)] = 256
    unlabeled_view: Literal["strong", "weak"] = "strong"
    teachers: Literal["peers", "averages"] = "peers"
    labels: Literal["disjoint", "shared"] = "disjoint"

    @model_validator(mode="after")
    def _have_teachers(self) -> Self:
        if self.teachers == "averages" and not self.average_decay:
            raise ValueError('teachers = "averages" needs an average_decay above 0')
        return self


class MinMaxSimilarity(TwoNetworks):
    """Two networks, each with its own half of the labels, agree on unlabeled pictures and differ between pictures.

    l1 L_sup + l2 L_min + l3 L_similarity + l4 L_max:
    - L_sup: the structure loss of each network on its own labels;
    - L_min: all positions of two different labeled pictures apart, by the classifiers;
    - L_similarity: how far each network's probabilities of the same unlabeled picture are from the other's, where the
      picture is visible;
    - L_max: the same position of the same unlabeled picture together, other positions apart, by the projectors.
    Classifiers and projectors take score maps: the log odds of every foreground class.

    Where the paper is silent or we differ: labeled and unlabeled pictures pass a network in one batch, so that
    BatchNorm sees both; pictures of the two halves are compared in pairs; weights are not all 0.25 and the unlabeled
    terms are ramped up; where labeled instruments were pasted (off by default) both networks are told their class;
    positions are drawn at random, so memory does not grow with the picture's size.
    """

    options_class = MinMaxSimilarityOptions
    options: MinMaxSimilarityOptions
    strong_views: ClassVar[int] = 1

    def __init__(self, options: MinMaxSimilarityOptions, network: NetworkConfig, classes: int) -> None:
        super().__init__(options, network, classes)
        self.labeled_parts = 2 if options.labels == "disjoint" else 1
        # a head whose term is off would hold parameters without gradient
        heads = {
            "classifiers": (Classifier, options.min_weight),
            "projectors": (Projector, options.max_weight),
        }
        for name, (head, weight) in heads.items():
            pair = nn.ModuleList(head(classes - 1) for _ in range(2 if weight else 0))
            self.add_module(name, pair.requires_grad_(options.heads == "trained"))

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        options, unlabeled = self.options, batch.require_unlabeled("min_max_similarity")
        pictures_nchw, visible_nhw = self._see(unlabeled)
        labeled, both_saw = self._predict(_halves(batch.images_nchw), pictures_nchw)
        ramp = ramp_up(step, options.ramp_steps)
        terms: dict[str, Tensor] = {}
        if options.supervised_weight:
            first, second = map(structure_loss, labeled, _halves(batch.targets_nhw))
            terms["structure"] = options.supervised_weight * (first + second)
        if options.min_weight:
            terms["min"] = options.min_weight * self._push_pictures_apart(labeled)
        if options.consistency_weight:
            taught = self._teach(both_saw, unlabeled)
            apart = self._compare(both_saw, taught, visible_nhw)
            terms["consistency"] = options.consistency_weight * ramp * apart
        if options.max_weight:
            terms["max"] = options.max_weight * ramp * self._pull_views_together(both_saw)
        return terms

    def _predict(self, labeled: Pair, pictures_nchw: Tensor) -> tuple[Pair, Pair]:
        """Each network's logits of its own labeled half, and of the unlabeled pictures that both see."""
        of_labeled, of_unlabeled = [], []
        for network, images_nchw in zip((self.first, self.second), labeled, strict=True):
            logits_nchw = network(torch.cat([images_nchw, pictures_nchw]))
            of_labeled.append(logits_nchw[: len(images_nchw)])
            of_unlabeled.append(logits_nchw[len(images_nchw) :])
        return of_labeled, of_unlabeled

    def _see(self, unlabeled: UnlabeledBatch) -> tuple[Tensor, Tensor]:
        """The unlabeled pictures that both networks see, and what is visible in them."""
        if self.options.unlabeled_view == "weak":
            return unlabeled.weak_nchw, torch.ones_like(unlabeled.visible_nhw[0])
        return unlabeled.strong_nchw[0], unlabeled.visible_nhw[0]

    def _teach(self, logits: Pair, unlabeled: UnlabeledBatch) -> Pair:
        """The probabilities that the first and the second network teach, certain where something is known."""
        if self.options.teachers == "averages":
            with torch.no_grad():
                logits = [average.average(unlabeled.weak_nchw) for average in self.averages]
        return [teach(maps_nchw, unlabeled.known_nhw) for maps_nchw in logits]

    def _compare(self, logits: Pair, taught: Pair, visible_nhw: Tensor) -> Tensor:
        """How far each network is from what the other teaches; the sum of both directions."""
        distance = CONSISTENCIES[self.options.consistency]
        return distance(logits[0], taught[1], visible_nhw) + distance(logits[1], taught[0], visible_nhw)

    def _push_pictures_apart(self, logits: Pair) -> Tensor:
        options = self.options
        pairs = min(len(logits[0]), len(logits[1]))  # of an odd batch the last picture has no partner
        vectors = []
        for classifier, logits_nchw in zip(self.classifiers, logits, strict=True):
            maps_ndhw = classifier(class_log_odds(logits_nchw[:pairs]))
            vectors.append(take_positions(maps_ndhw, self._draw(maps_ndhw)))
        return push_all_apart(*vectors, options.temperature, options.similarity)

    def _pull_views_together(self, logits: Pair) -> Tensor:
        options = self.options
        first, second = (
            projector(class_log_odds(maps)) for projector, maps in zip(self.projectors, logits, strict=True)
        )
        positions_nk = self._draw(first)
        return pull_same_positions(
            take_positions(first, positions_nk),
            take_positions(second, positions_nk),
            options.temperature,
            options.similarity,
            options.symmetric,
        )

    def _draw(self, maps_nchw: Tensor) -> Tensor:
        places = maps_nchw.shape[2] * maps_nchw.shape[3]
        return draw_positions(len(maps_nchw), places, self.options.positions)


def _halves(batch: Tensor) -> Pair:
    """The two parts of a labeled batch; of an odd number the first has one more. Raises DataError."""
    if len(batch) < 2:
        raise DataError(
            f"The batch holds {len(batch)} labeled picture.",
            "at least one for each of the two networks",
            "Set batch_size = 2 or more in the recipe.",
        )
    return list(batch.split((len(batch) + 1) // 2))
