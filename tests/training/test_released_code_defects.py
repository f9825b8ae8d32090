"""Thirteen ways in which the released code of Min-Max Similarity differs from its paper: none is here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from service.errors import DataError
from tests.training.small_batches import NETWORK, make_batch
from tests.training.small_runs import small_recipe
from training import trainer as trainer_module
from training.config import RECIPES, load_recipe
from training.data import open_data
from training.data.batches import Drawer, PictureBatch, TrainingBatches, open_pools
from training.data.samples import Sample
from training.data.splits import load_split, take_share
from training.losses.contrast import pull_same_positions
from training.losses.structure import structure_loss
from training.method import Method
from training.methods import build_method
from training.prediction import make_predict
from training.run_log import LOG
from training.trainer import BEST, Trainer


def build(**options: object) -> Method:
    torch.manual_seed(0)
    return build_method("min_max_similarity", {"ramp_steps": 0, **options}, NETWORK, 2).train()


def reaches(loss: Tensor, network: nn.Module) -> bool:
    gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    return any(bool((gradient != 0).any()) for gradient in gradients)


def write_frame(root: Path, name: str, image_hwc: np.ndarray, mask_hw: np.ndarray) -> None:
    for part, values in (("image", image_hwc), ("mask", mask_hw)):
        path = root / "train" / part / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), values)


def samples_of(counts: dict[str, int]) -> list[Sample]:
    """Frames that cannot be loaded: only their names matter here."""
    return [
        Sample(f"{video}/{number:03d}", video, lambda: np.zeros((2, 2, 3), np.uint8))
        for video, count in counts.items()
        for number in range(count)
    ]


class Recorder(nn.Module):
    """A network that keeps what it was shown and whether it was training, and answers background."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []
        self.was_training: list[bool] = []

    def forward(self, images_nchw: Tensor) -> Tensor:
        self.shown.append(images_nchw)
        self.was_training.append(self.training)
        return functional.one_hot(torch.zeros_like(images_nchw[:, 0]).long(), 2).movedim(-1, 1).float()


@pytest.mark.parametrize("consistency", ["squared", "cross_entropy"])
def test_1_the_consistency_term_has_a_gradient_for_both_networks(consistency: str) -> None:
    method = build(consistency=consistency)
    loss = method.losses(make_batch(method), 0)["consistency"]
    assert all(reaches(loss, network) for network in method.networks.values())


def test_2_the_contrast_reaches_both_networks_and_treats_them_alike() -> None:
    method = build()
    losses = method.losses(make_batch(method), 0)
    for term in ("min", "max"):
        assert all(reaches(losses[term], network) for network in method.networks.values()), term
    first, second = torch.randn(2, 1, 6, 4)
    one, other = (pull_same_positions(*pair, 0.07, "l2", True) for pair in ((first, second), (second, first)))
    torch.testing.assert_close(one, other)


def test_3_a_perfect_mask_costs_nothing_because_the_sigmoid_is_applied_once() -> None:
    targets = torch.zeros(1, 64, 64, dtype=torch.int64)
    targets[0, 16:48, 16:48] = 1
    certain = torch.stack([-20.0 * (targets == 1), 20.0 * (targets == 1) - 20.0 * (targets == 0)], dim=1)
    assert float(structure_loss(certain, targets)) < 1e-3
    twice = torch.stack(
        [torch.zeros(1, 64, 64), (targets == 1).float()], dim=1
    )  # logits that are probabilities
    assert float(structure_loss(twice, targets)) > 0.5


def test_4_boundary_weights_do_not_cancel() -> None:
    targets = torch.zeros(1, 64, 64, dtype=torch.int64)
    targets[0, :, 32:] = 1
    blurred = torch.zeros(1, 2, 64, 64)
    blurred[:, 1] = torch.linspace(-4, 4, 64)  # unsure at the boundary only
    weighted, unweighted = (float(structure_loss(blurred, targets, gain=gain)) for gain in (5.0, 0.0))
    assert weighted > 1.3 * unweighted


def test_5_l2_similarities_leave_ln_n_and_l1_similarities_do_not() -> None:
    views = torch.randn(1, 256, 16, generator=torch.Generator().manual_seed(0))
    assert float(pull_same_positions(views, views, 0.07, "l2", True)) < 0.1 * math.log(256)
    assert float(pull_same_positions(views, views, 0.07, "l1", True)) > 0.75 * math.log(256)
    assert build().options.similarity == "l2"


@pytest.mark.parametrize("size", [(192, 160), (40, 72), (33, 50)])
def test_6_any_picture_size_and_number_of_positions_works(size: tuple[int, int]) -> None:
    method = build()
    assert all(torch.isfinite(loss) for loss in method.losses(make_batch(method, size=size), 0).values())


def test_7_validation_is_in_eval_mode_and_leaves_the_statistics_alone(tmp_path: Path) -> None:
    trainer = Trainer(small_recipe(tmp_path, "method.average_decay=0"), tmp_path / "run")
    trainer.method.train()
    normalisations = [m for m in trainer.method.modules() if isinstance(m, nn.BatchNorm2d)]
    modes: list[bool] = []
    normalisations[0].register_forward_hook(lambda module, *_: modes.append(module.training))
    before = [buffer.clone() for buffer in trainer.method.buffers()]
    trainer.validate()
    assert modes and not any(modes)
    assert all(torch.equal(*pair) for pair in zip(before, trainer.method.buffers(), strict=True))
    assert all(module.training for module in normalisations)


def test_8_validation_pictures_are_normalised_as_training_pictures_are(tmp_path: Path) -> None:
    trainer = Trainer(small_recipe(tmp_path), tmp_path / "run")
    image_hwc = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    recorder = Recorder()
    make_predict(recorder, trainer.device)(image_hwc[None])
    raw = torch.from_numpy(image_hwc).permute(2, 0, 1)[None]
    learned_from = trainer._to_batch(PictureBatch(raw, torch.zeros(1, 64, 96, dtype=torch.int64)))
    torch.testing.assert_close(recorder.shown[0], learned_from.images_nchw)
    assert recorder.was_training == [False]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (raw / 255 - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
    torch.testing.assert_close(recorder.shown[0], expected)


def test_9_the_best_step_is_chosen_on_validation_data_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_recipe(tmp_path)  # writes the data: train/0 to train/5
    split = {"train": ["0", "1"], "validation": ["2", "3"], "test": ["4", "5"]}
    path = tmp_path / "split.json"
    by_frame = {"by": "frame", "parts": {part: {"train": names} for part, names in split.items()}}
    path.write_text(json.dumps(by_frame))
    table = f'source = "folder:{tmp_path / "data"}", split = "{path}"'
    recipe = small_recipe(
        tmp_path,
        f'labeled=[{{ {table}, part = "train" }}]',
        f'validation=[{{ {table}, part = "validation" }}]',
        "steps=2",
        "validate_every=1",
    )
    judged: set[str] = set()
    evaluate = trainer_module.evaluate_samples

    def recording(predict: object, samples: list[Sample], *rest: object, **options: object) -> object:
        judged.update(sample.sample_id for sample in samples)
        return evaluate(predict, samples, *rest, **options)

    monkeypatch.setattr(trainer_module, "evaluate_samples", recording)
    Trainer(recipe, tmp_path / "run").run(progress=False)
    assert judged == {"train/2", "train/3"}
    assert (tmp_path / "run" / BEST).is_file()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_9_no_recipe_trains_or_selects_on_a_test_part(path: Path) -> None:
    recipe = load_recipe(path)
    assert all(data.part != "test" for data in (*recipe.labeled, *recipe.unlabeled, *recipe.validation))


def test_10_masks_are_paired_by_name_whatever_the_order_of_a_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (10, 2, 33, 1):
        write_frame(
            tmp_path, str(number), np.full((4, 4, 3), number, np.uint8), np.eye(4, dtype=np.uint8) * 255
        )
        mask_hw = np.zeros((4, 40), np.uint8)
        mask_hw[:, number] = 255
        cv2.imwrite(str(tmp_path / "train" / "mask" / f"{number}.png"), mask_hw)
        cv2.imwrite(
            str(tmp_path / "train" / "image" / f"{number}.png"), np.full((4, 40, 3), number, np.uint8)
        )
    listed = Path.rglob

    def unsorted(folder: Path, pattern: str) -> list[Path]:
        return sorted(listed(folder, pattern), key=lambda path: (path.parent.name == "mask", hash(path.name)))

    monkeypatch.setattr(Path, "rglob", unsorted)
    samples = open_data(f"folder:{tmp_path}")
    assert len(samples) == 4
    for sample in samples:
        image_hwc, mask_hw = sample.load()
        assert mask_hw is not None and np.flatnonzero(mask_hw[0]).tolist() == [int(image_hwc[0, 0, 0])]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.37, 0.5, 0.83])
def test_11_labeled_frames_are_spread_over_every_video_not_the_first_ones(share: float) -> None:
    counts = {"a": 40, "b": 37, "c": 11}
    samples = samples_of(counts)
    kept = take_share(samples, share, seed=1)
    assert len({sample.sample_id for sample in kept}) == len(kept)
    assert [sample.sample_id for sample in kept] != [sample.sample_id for sample in samples[: len(kept)]]
    for video, count in counts.items():
        numbers = [int(sample.sample_id.rpartition("/")[2]) for sample in kept if sample.video == video]
        assert len(numbers) == max(1, round(share * count))
        if len(numbers) > 1:
            assert min(numbers) < count / len(numbers) + 1
            assert max(numbers) > count - count / len(numbers) - 1


def test_11_a_video_on_both_sides_of_a_split_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"parts": {"train": {"a": ["1"]}, "test": {"a": ["2"]}}}))
    with pytest.raises(DataError, match="share the video a"):
        load_split(str(path))


def test_11_the_two_halves_of_the_labels_never_share_a_frame(tmp_path: Path) -> None:
    for number in range(7):
        image_hwc = np.full((16, 16, 3), number, np.uint8)
        write_frame(tmp_path / "frames", str(number), image_hwc, np.zeros((16, 16), np.uint8))
    recipe = small_recipe(tmp_path, f'labeled=[{{ source = "folder:{tmp_path / "frames"}" }}]')
    drawer = Drawer(open_pools(recipe.labeled), parts=2)
    rng = np.random.default_rng(0)
    first, second = ({int(drawer.draw(rng, part)[0][0, 0, 0]) for _ in range(80)} for part in (0, 1))
    assert first | second == set(range(7))
    assert not first & second


def test_12_the_number_of_steps_does_not_depend_on_the_share_of_labels(tmp_path: Path) -> None:
    for share in (1.0, 0.34):
        source = f'labeled=[{{ source = "folder:{tmp_path / "data"}", share = {share} }}]'
        trainer = Trainer(small_recipe(tmp_path, source, "steps=2"), tmp_path / f"run{share}")
        assert len(trainer.training_pools[0].samples) == round(6 * share)
        trainer.run(progress=False)
        lines = [json.loads(line) for line in (tmp_path / f"run{share}" / LOG).read_text().splitlines()]
        assert [line["step"] for line in lines if line["part"] == "train"] == [1, 2]


def test_13_landscape_frames_stay_landscape_and_upright(tmp_path: Path) -> None:
    image_hwc, mask_hw = np.zeros((48, 96, 3), np.uint8), np.zeros((48, 96), np.uint8)
    image_hwc[12:24], mask_hw[12:24] = 255, 255  # a bar across, in the upper half
    write_frame(tmp_path / "frames", "bar", image_hwc, mask_hw)
    plain = {"scale": "[1.0, 1.0]", "rotation_degrees": 0, "aspect_jitter": 0, "flip": 0, "flip_vertical": 0}
    recipe = small_recipe(
        tmp_path,
        f'labeled=[{{ source = "folder:{tmp_path / "frames"}" }}]',
        *(f"augment.{key}={value}" for key, value in plain.items()),
    )
    pictures = TrainingBatches(recipe, open_pools(recipe.labeled), [])[0]
    assert pictures.images.shape[2:] == pictures.targets.shape[1:] == (64, 96)  # height, width
    rows, columns = pictures.targets[0].any(dim=1), pictures.targets[0].any(dim=0)
    assert 8 <= int(rows.sum()) <= 14 and int(columns.sum()) > 80
    recorder = Recorder()
    trainer_module.evaluate_samples(
        make_predict(recorder, torch.device("cpu")),
        open_data(f"folder:{tmp_path / 'frames'}"),
        recipe.input_size,
        recipe.fit,
        surfaces=False,
        progress=False,
    )
    bright = recorder.shown[0][0].mean(dim=0) > 0
    assert bright.shape == (64, 96)
    assert int(bright.any(dim=1).sum()) == 12 and int(bright.any(dim=0).sum()) == 96
