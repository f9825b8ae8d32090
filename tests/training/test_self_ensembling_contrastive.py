"""What is particular to self-ensembling contrastive learning: its samples, its teacher, its memory and its bounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.errors import DataError
from tests.training.small_batches import NETWORK, make_batch
from tests.training.small_runs import small_recipe
from training.checkpoint import load_checkpoint
from training.losses.group_contrast import NO_GROUP, pull_groups_together
from training.method import Batch
from training.methods import build_method
from training.methods import self_ensembling_contrastive as module
from training.methods.self_ensembling_contrastive import SelfEnsemblingContrastive
from training.trainer import LAST, Trainer

CELL, LEVEL = 8, 2  # the default stride, and its place among the edge network's maps
both_samplings = pytest.mark.parametrize("sampling", ["region", "anatomical"])


def build(classes: int = 2, **options: Any) -> SelfEnsemblingContrastive:
    torch.manual_seed(0)
    live = {"ramp_steps": 0, "confidence": 0.0, **options}
    method = build_method("self_ensembling_contrastive", live, NETWORK, classes).train()
    assert isinstance(method, SelfEnsemblingContrastive)
    return method


@torch.no_grad()
def wake(method: SelfEnsemblingContrastive) -> None:
    """Networks that predict more than one class, though their weights are random, and a teacher unlike its student."""
    for network in method.segmenters:
        network.classify.weight.mul_(40)
    for average in (method.teacher, method.teacher_projector):
        for parameter in average.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape))


def contrast_by_loops(
    queries: list[tuple[np.ndarray, int]], keys: list[tuple[np.ndarray, int]], t: float
) -> float:
    losses_of: dict[int, list[float]] = {}
    for query, group in queries:
        scores = [(float(query @ key) / t, other) for key, other in keys]
        rivals = sum(math.exp(score) for score, other in scores if other != group)
        own = [math.log(1 + rivals / math.exp(score)) for score, other in scores if other == group]
        if own and rivals:
            losses_of.setdefault(group, []).append(sum(own) / len(own))
    return sum(sum(losses) / len(losses) for losses in losses_of.values()) / len(losses_of)


def describe(head: torch.nn.Module, vector: Tensor) -> np.ndarray:
    projected = head(vector[None])[0].detach().double().numpy()
    return projected / np.sqrt((projected**2).sum())


def cells_of(maps: Tensor) -> list[tuple[int, int, int, Tensor]]:
    return [(n, y, x, maps[n, :, y, x]) for n, y, x in np.ndindex(maps.shape[0], *maps.shape[2:])]


def middle(index: int) -> int:
    return index * CELL + CELL // 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels_from": "student", "unlabeled_view": "weak"},
        {"background": "negatives", "keys_from": "both"},
        {"confidence": 0.38, "temperature": 0.5, "contrast_weight": 0.3},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_the_anatomical_contrast_is_a_loop_over_cells_of_the_same_pseudo_label(
    options: dict[str, Any],
) -> None:
    method = build(classes=3, positions=4096, memory=0, projection_width=8, **options)
    wake(method)
    batch = make_batch(method, classes=3)
    unlabeled, chosen = batch.unlabeled, method.options
    unlabeled.known_nhw[0, 40:60] = 2
    unlabeled.origins_m23[1, 0, 2] = -0.3  # some cells lie beyond the picture
    view = unlabeled.strong_nchw[0] if chosen.unlabeled_view == "strong" else unlabeled.weak_nchw
    with torch.no_grad():
        student = method.network.features(torch.cat([batch.images_nchw, view]))[LEVEL][4:]
        teacher = method.teacher.average.features(unlabeled.weak_nchw)[LEVEL]
        of_labeled = method.teacher.average.features(batch.images_nchw)[LEVEL]
    found = float(method.losses(batch, 0)["contrast"].detach())
    labeler = method.network.eval() if chosen.labels_from == "student" else method.teacher.average
    with torch.no_grad():
        probabilities = labeler(unlabeled.weak_nchw).softmax(dim=1)
    queries, keys = [], []
    for (n, y, x, seen), (*_, taught) in zip(cells_of(student), cells_of(teacher), strict=True):
        row, column = middle(y), middle(x)
        certainty, label = (float(v) for v in probabilities[n, :, row, column].max(dim=0))
        label = int(unlabeled.known_nhw[n, row, column]) or int(label)
        certainty = 1.0 if unlabeled.known_nhw[n, row, column] else certainty
        beyond = n == 1 and (x * CELL + CELL / 2) / 96 - 0.5 / 96 < 0.3
        if certainty < chosen.confidence or beyond:
            continue
        keys.append((describe(method.teacher_projector.average, taught), label))
        is_seen = chosen.unlabeled_view == "weak" or bool(unlabeled.visible_nhw[0][n, row, column])
        if is_seen and (label or chosen.background == "class"):
            queries.append((describe(method.projector, seen), label))
    if chosen.keys_from == "both":
        for n, y, x, taught in cells_of(of_labeled):
            label = int(batch.targets_nhw[n, middle(y), middle(x)])
            keys.append((describe(method.teacher_projector.average, taught), label))
    assert len({group for _, group in keys}) > 1 and 0 < len(queries) < 2 * 96
    expected = chosen.contrast_weight * contrast_by_loops(queries, keys, chosen.temperature)
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_region_contrast_is_a_loop_over_the_same_region_of_every_picture() -> None:
    method = build(sampling="region", grid=(2, 3), memory=0, projection_width=8, contrast_weight=1.0)
    wake(method)
    batch = make_batch(method)
    unlabeled = batch.unlabeled
    unlabeled.origins_m23[1, 0] = torch.tensor([-1 / 96, 0, 1 - 0.5 / 96])  # the second picture was mirrored
    unlabeled.visible_nhw[0][:, 32:, 64:] = False  # and of one region the student sees nothing
    with torch.no_grad():
        student = method.network.features(torch.cat([batch.images_nchw, unlabeled.strong_nchw[0]]))[LEVEL][4:]
        teacher = method.teacher.average.features(unlabeled.weak_nchw)[LEVEL]
    queries, keys = [], []
    for n in range(2):
        for region in range(6):
            row, column = divmod(region, 3)
            column = 2 - column if n == 1 else column
            places = [(y, x) for y in range(row * 4, row * 4 + 4) for x in range(column * 4, column * 4 + 4)]
            seen = [(y, x) for y, x in places if unlabeled.visible_nhw[0][n, middle(y), middle(x)]]
            mean = torch.stack([teacher[n, :, y, x] for y, x in places]).mean(dim=0)
            keys.append((describe(method.teacher_projector.average, mean), region))
            if seen:
                mean = torch.stack([student[n, :, y, x] for y, x in seen]).mean(dim=0)
                queries.append((describe(method.projector, mean), region))
    assert len(keys) == 12 and len(queries) == 10
    found = float(method.losses(batch, 0)["contrast"].detach())
    assert found == pytest.approx(contrast_by_loops(queries, keys, 0.1), rel=1e-3)


@both_samplings
def test_the_contrast_teaches_the_students_encoder_and_head_alone(sampling: str) -> None:
    method = build(sampling=sampling, keys_from="both")
    method.losses(make_batch(method), 0)["contrast"].backward()
    taught = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught and all(name.startswith(("network.encoder.", "projector.")) for name in taught)
    assert {name for name, _ in method.named_parameters() if name.startswith("projector.")} <= taught


def test_encoder_and_head_of_the_teacher_are_averages_and_integer_buffers_are_copied() -> None:
    method = build(average_decay=0.5)
    before = {name: value.clone() for name, value in method.teacher_projector.average.state_dict().items()}
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1.0 if parameter.requires_grad else 0.0)
    for _ in range(3):
        method.losses(make_batch(method), 0)
    method.after_step(0)
    decay = 2 / 11  # (1 + n) / (10 + n) at the first update
    for name, value in method.teacher_projector.average.state_dict().items():
        expected = decay * before[name] + (1 - decay) * method.projector.state_dict()[name]
        torch.testing.assert_close(value, expected)
    counts = {name: value for name, value in method.network.encoder.named_buffers() if "num_batches" in name}
    kept = dict(method.teacher.average.encoder.named_buffers())
    assert counts and all(int(kept[name]) == int(count) == 3 for name, count in counts.items())
    assert all(kept[name].dtype == torch.int64 for name in counts)


@both_samplings
def test_what_is_compared_does_not_grow_with_the_pictures(
    sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, ...]] = []

    def recording(queries: Tensor, query_groups: Tensor, keys: Tensor, *rest: Any) -> Tensor:
        compared.append((len(queries), len(keys)))
        return pull_groups_together(queries, query_groups, keys, *rest)

    monkeypatch.setattr(module, "pull_groups_together", recording)
    method = build(sampling=sampling, positions=20, memory=8, grid=(2, 2))
    for size in ((64, 96), (128, 160), (256, 256)):
        method.losses(make_batch(method, size=size), 0)
    groups, places = (4, 2) if sampling == "region" else (2, 20)
    assert compared == [(groups * places, groups * (places + 8))] * 3
    assert method.memory.keys_gsd.shape == (groups, 8, 128)


@both_samplings
@pytest.mark.parametrize(
    "missing", ["confident cells", "all classes but one", "all pictures but one", "any visible pixel"]
)
def test_it_is_finite_whatever_is_missing(sampling: str, missing: str) -> None:
    method = build(classes=4, sampling=sampling, confidence=1.0 if missing == "confident cells" else 0.0)
    batch = make_batch(method, classes=4)
    unlabeled = batch.unlabeled
    if missing == "all classes but one":
        unlabeled.known_nhw[:] = 3
    if missing == "any visible pixel":
        unlabeled.visible_nhw[0][:] = False
    if missing == "all pictures but one":
        unlabeled.weak_nchw, unlabeled.strong_nchw = unlabeled.weak_nchw[:1], (unlabeled.strong_nchw[0][:1],)
        unlabeled.visible_nhw, unlabeled.known_nhw = (unlabeled.visible_nhw[0][:1],), unlabeled.known_nhw[:1]
        unlabeled.origins_m23 = unlabeled.origins_m23[:1]
        batch = Batch(batch.images_nchw, batch.targets_nhw, unlabeled)
    for _ in range(2):  # the second time with what was remembered
        losses = method.losses(batch, 0)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(method.memory.keys_gsd).all()


def test_keys_of_past_batches_are_remembered_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def recording(queries: Tensor, query_groups: Tensor, keys: Tensor, groups: Tensor, *rest: Any) -> Tensor:
        seen.append((keys, groups))
        return pull_groups_together(queries, query_groups, keys, groups, *rest)

    monkeypatch.setattr(module, "pull_groups_together", recording)
    method = build(sampling="region", grid=(2, 2), memory=4)
    for seed in (1, 2):
        method.losses(make_batch(method, seed=seed), 0)
    (first, _), (second, groups) = seen
    assert torch.equal(second[8:][groups[8:] != NO_GROUP].sort(dim=0)[0], first[:8].sort(dim=0)[0])
    torch.testing.assert_close(first[:8].norm(dim=1), torch.ones(8))


def test_it_resumes_with_its_memory_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    recipe = small_recipe(
        tmp_path,
        'method={ name = "self_ensembling_contrastive", confidence = 0.0, memory = 40 }',
        f'unlabeled=[{{ source = "folder:{tmp_path / "data"}" }}]',
        'network.options={ encoder = "test_efficientnet", width = 16 }',
        "unlabeled_batch_size=2",
        "steps=4",
        "validate_every=4",
    )
    Trainer(recipe, tmp_path / "whole").run(progress=False)
    Trainer(recipe, tmp_path / "parts").run(progress=False, stop_at=2)
    resumed = Trainer(recipe, tmp_path / "parts")
    resumed.resume()
    resumed.run(progress=False)
    whole, parts = (load_checkpoint(tmp_path / run / LAST).state["method"] for run in ("whole", "parts"))
    assert whole["memory.stored_g"].any()
    for key, value in whole.items():
        torch.testing.assert_close(value, parts[key], rtol=0, atol=0, msg=key)


def test_only_the_unlabeled_terms_are_ramped_up() -> None:
    start, later = (
        build(ramp_steps=9, sampling="region", consistency_weight=1.0).losses(make_batch(build()), step)
        for step in (0, 9)
    )
    for term, factor in {
        "dice": 1,
        "cross_entropy": 1,
        "contrast": math.exp(-5),
        "consistency": math.exp(-5),
    }.items():
        assert float(start[term].detach()) == pytest.approx(float(later[term].detach()) * factor, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"feature_stride": 5}, "stride 5.*one of 2, 4, 8, 16, 32"),
        ({"grid": [1, 1]}, "a single region"),
        ({"average_decay": 0}, "average_decay is 0"),
        ({"samplings": "region"}, "Did you mean 'sampling'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        build(**options)
