"""UniMatch (Yang, Qi, Feng, Zhang, Shi, CVPR 2023, arXiv 2208.09910)."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.averaged_networks import AverageOptions, OneNetwork
from training.config import Share, ShareBelowOne, Weight
from training.labeled_loss import LabeledLossOptions, labeled_losses
from training.losses.cutmix import draw_boxes, mix
from training.losses.pseudo_label import PseudoLabels, make_pseudo_labels, pseudo_label_cross_entropy
from training.method import Batch, UnlabeledBatch


class UniMatchOptions(AverageOptions, LabeledLossOptions):
    """`strong_weight` (the paper's mu) is shared by the two strong views, `feature_weight` is its lambda.

    Pixels whose pseudo label has a probability under `threshold` are not learned from. `feature_dropout` is the share
    of encoder channels that the feature stream loses, `cutmix` the share of strong pictures with a box of another one.
    """

    strong_weight: Weight = 0.5
    feature_weight: Weight = 0.5
    threshold: Share = 0.95
    feature_dropout: ShareBelowOne = 0.5
    cutmix: Share = 0.5


class _Stream(NamedTuple):
    """Pictures that the network sees in one way, and what it shall say of them."""

    name: str
    weight: float
    images_nchw: Tensor
    labels: PseudoLabels
    visible_nhw: Tensor
    lost_channels: float = 0.0


class UniMatch(OneNetwork):
    """One network makes pseudo labels on the weak view and learns them on two strong views and under lost features.

    Unlabeled loss: lambda H(p_w, p_fp) + mu / 2 (H(p_w, p_s1) + H(p_w, p_s2)) over confident pixels (equation 7,
    lambda = mu = 0.5). Where we differ: the labeled loss has soft Dice beside cross-entropy, as every method here, and
    labeled and unlabeled losses are added without the paper's factor 1/2 for both; pseudo labels are made in eval mode
    (algorithm 1 reuses the training pass); a box's partner is another picture of the same batch, its size is
    drawn as in CutMix; pixels that a strong view hides are left out.
    """

    options_class = UniMatchOptions
    options: UniMatchOptions
    strong_views: ClassVar[int] = 2

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        streams = [
            stream for stream in self._streams(batch.require_unlabeled("unimatch")) if stream.weight > 0
        ]
        logits_nchw, *logits_of_streams = self._predict(batch.images_nchw, streams)
        losses = labeled_losses(logits_nchw, batch.targets_nhw, self.options)
        threshold = self.options.threshold
        for stream, logits in zip(streams, logits_of_streams, strict=True):
            loss = pseudo_label_cross_entropy(logits, stream.labels, stream.visible_nhw, threshold)
            losses[stream.name] = stream.weight * loss
        return losses

    def _streams(self, unlabeled: UnlabeledBatch) -> list[_Stream]:
        """The feature stream on the weak view and a stream for each strong view."""
        options = self.options
        labels = make_pseudo_labels(self.network, unlabeled.weak_nchw, unlabeled.known_nhw)
        everything = torch.ones_like(unlabeled.visible_nhw[0])
        weak = _Stream("feature", options.feature_weight, unlabeled.weak_nchw, labels, everything)
        streams = [weak._replace(lost_channels=options.feature_dropout)]
        count, _, height, width = unlabeled.weak_nchw.shape
        views = zip(unlabeled.strong_nchw, unlabeled.visible_nhw, strict=True)
        for number, (images_nchw, visible_nhw) in enumerate(views, start=1):
            boxes_nhw = draw_boxes(count, (height, width), options.cutmix, images_nchw.device)
            mixed_labels = PseudoLabels(*(mix(values, boxes_nhw) for values in labels))
            mixed = (mix(images_nchw, boxes_nhw), mixed_labels, mix(visible_nhw, boxes_nhw))
            streams.append(_Stream(f"strong_{number}", options.strong_weight / self.strong_views, *mixed))
        return streams

    def _predict(self, images_nchw: Tensor, streams: list[_Stream]) -> tuple[Tensor, ...]:
        """Logits of the labeled pictures and of each stream's, the feature stream's with channels left out.

        All go through the network together, so that BatchNorm's statistics are those of every stream.
        """
        pictures = [images_nchw, *(stream.images_nchw for stream in streams)]
        counts = [len(part) for part in pictures]
        lost = [0.0, *(stream.lost_channels for stream in streams)]
        features = [
            torch.cat(
                [functional.dropout2d(m, share) for m, share in zip(maps.split(counts), lost, strict=True)]
            )
            for maps in self.network.features(torch.cat(pictures))
        ]
        height, width = images_nchw.shape[2:]
        return self.network.head(features, (height, width)).split(counts)
