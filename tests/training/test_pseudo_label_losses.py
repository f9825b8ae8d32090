"""Learning from pseudo labels equals a literal loop of its equation; CutMix moves boxes and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from training.losses.cutmix import draw_boxes, mix
from training.losses.pseudo_label import PseudoLabels, make_pseudo_labels, pseudo_label_cross_entropy


def random_case(classes: int) -> tuple[Tensor, PseudoLabels, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, 3, 4, generator=generator, requires_grad=True)
    targets = torch.randint(0, classes, (2, 3, 4), generator=generator)
    confidence = torch.rand(2, 3, 4, generator=generator)
    visible = torch.rand(2, 3, 4, generator=generator) > 0.3
    return logits, PseudoLabels(targets, confidence), visible


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.95])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("is_covered", [True, False])
def test_it_is_the_mean_over_visible_pixels_of_the_confident_ones_loss(
    classes: int, threshold: float, is_covered: bool
) -> None:
    logits, labels, visible = random_case(classes)
    total, count = 0.0, 0
    for n in range(2):
        for y in range(3):
            for x in range(4):
                if is_covered and not visible[n, y, x]:
                    continue
                count += 1
                if labels.confidence_nhw[n, y, x] >= threshold:
                    values = [math.exp(float(logits.detach()[n, c, y, x])) for c in range(classes)]
                    total -= math.log(values[int(labels.targets_nhw[n, y, x])] / sum(values))
    loss = pseudo_label_cross_entropy(logits, labels, visible if is_covered else None, threshold)
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-5)


def test_hidden_and_doubtful_pixels_get_no_gradient() -> None:
    logits, labels, visible = random_case(2)
    pseudo_label_cross_entropy(logits, labels, visible, 0.5).backward()
    learned = visible & (labels.confidence_nhw >= 0.5)
    gradient = logits.grad.abs().sum(dim=1)
    assert learned.any() and not learned.all()
    assert (gradient[learned] > 0).all() and (gradient[~learned] == 0).all()


def test_it_is_zero_where_nothing_is_visible_or_sure() -> None:
    logits, labels, visible = random_case(3)
    assert float(pseudo_label_cross_entropy(logits, labels, torch.zeros_like(visible)).detach()) == 0
    assert float(pseudo_label_cross_entropy(logits, labels, visible, threshold=1.1).detach()) == 0


class Brightness(nn.Module):
    """Says class 1 where the first channel is above 0, half as surely in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images_nchw: Tensor) -> Tensor:
        logits = images_nchw[:, :1] * self.scale * (0.5 if self.training else 1.0)
        return torch.cat([-logits, logits], dim=1)


@pytest.mark.parametrize("is_training", [True, False])
def test_pseudo_labels_are_made_in_eval_mode_without_gradient(is_training: bool) -> None:
    network = Brightness().train(is_training)
    images = torch.tensor([[-1.0, 0.5], [3.0, -0.25]]).expand(1, 3, 2, 2)
    labels = make_pseudo_labels(network, images, torch.zeros(1, 2, 2, dtype=torch.int64))
    assert labels.targets_nhw.tolist() == [[[0, 1], [1, 0]]]
    for confidence, value in zip(labels.confidence_nhw.flatten(), images[0, 0].flatten(), strict=True):
        assert float(confidence) == pytest.approx(1 / (1 + math.exp(-4 * abs(float(value)))))
    assert not labels.confidence_nhw.requires_grad
    assert network.training == is_training


def test_a_pasted_instrument_is_known_for_certain() -> None:
    images = torch.tensor([[-1.0, 0.5], [3.0, -0.25]]).expand(1, 3, 2, 2)
    labels = make_pseudo_labels(Brightness(), images, torch.tensor([[[1, 0], [0, 0]]]))
    assert labels.targets_nhw.tolist() == [[[1, 1], [1, 0]]]
    assert float(labels.confidence_nhw[0, 0, 0]) == 1
    assert float(labels.confidence_nhw.flatten()[1:].max()) < 1


def test_mixing_takes_the_boxes_from_the_neighbour_in_every_tensor_alike() -> None:
    boxes = torch.zeros(3, 4, 5, dtype=torch.bool)
    boxes[0, 1:3, 2:4] = boxes[2, 0, :] = True
    images = torch.rand(3, 2, 4, 5)
    targets = torch.randint(0, 3, (3, 4, 5))
    mixed_images, mixed_targets = mix(images, boxes), mix(targets, boxes)
    for n in range(3):
        for y in range(4):
            for x in range(5):
                source = (n - 1) % 3 if boxes[n, y, x] else n
                assert torch.equal(mixed_images[n, :, y, x], images[source, :, y, x])
                assert mixed_targets[n, y, x] == targets[source, y, x]


def test_boxes_are_rectangles_of_cutmix_sizes() -> None:
    torch.manual_seed(0)
    boxes = draw_boxes(2000, (20, 30), 1.0, torch.device("cpu"))
    assert boxes.shape == (2000, 20, 30) and boxes.dtype == torch.bool
    rows, columns = boxes.any(dim=2).sum(dim=1), boxes.any(dim=1).sum(dim=1)
    assert torch.equal(boxes.sum(dim=(1, 2)), rows * columns)
    # Monte Carlo over the definition: sides sqrt(u) about a uniform centre, cut off at the border
    side, y, x = torch.rand(3, 100_000)
    shares = [
        (centre + side.sqrt() / 2).clamp(max=1) - (centre - side.sqrt() / 2).clamp(min=0) for centre in (y, x)
    ]
    expected = float((shares[0] * shares[1]).mean())
    assert float(boxes.float().mean()) == pytest.approx(expected, abs=0.02)


def test_boxes_come_with_their_probability_and_repeat_with_the_seed() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(draw_boxes(500, (16, 16), 0.5, torch.device("cpu")))
    assert torch.equal(*draws)
    # a tenth of the drawn boxes are so small that they hold no pixel centre
    assert 0.35 < float(draws[0].any(dim=(1, 2)).float().mean()) < 0.55
    assert not draw_boxes(50, (16, 16), 0.0, torch.device("cpu")).any()
