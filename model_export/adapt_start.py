"""What `surgseg-export adapt --start` names: a run's checkpoint, or a bundle, of which a checkpoint is made first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from model_export.adapt_training import measure
from model_export.frames import spread
from model_export.from_onnx import find_network, rebuild_network, require_same_labels
from model_export.pictures import fit_to_card
from service.contract.bundle import Bundle, open_bundle
from service.contract.geometry import Image, fit_image, plan_fit
from service.contract.model_card import DataSource
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import DataConfig, NetworkConfig, Recipe
from training.data.batches import open_pools
from training.data.samples import Sample
from training.methods import build_method

STARTED = "start.pt"
STATISTICS_FRAMES = 128  # of the labeled frames, and as many of the unlabeled ones
PROOF_FRAMES = 8
METHOD = {"name": "supervised", "average_decay": 0.0}  # one network, not two copies of the same


@dataclass(frozen=True)
class Start:
    """A network to start from: what it is called, the checkpoint that training reads, and what it has learned from.

    Of a `bundle` the checkpoint does not exist before `make_checkpoint`.
    """

    name: str
    checkpoint: Path
    network: NetworkConfig
    sources: tuple[DataSource, ...]
    bundle: Bundle | None = None

    def apply(self, recipe: Recipe, kept: Collection[str]) -> Recipe:
        """The recipe with this start and its network.

        Of a bundle also with its size and fit, except for the keys in `kept`: what is trained further should run as
        fast as what is in service. And with its classes, unless the recipe names classes.
        """
        values: dict[str, Any] = {"init_from": str(self.checkpoint), "network": self.network}
        if self.bundle is not None:
            card = self.bundle.card
            own = {"input_size": card.input_size, "fit": card.fit}
            values |= {key: value for key, value in own.items() if key not in kept}
            if "classes" not in recipe.model_fields_set:
                values["classes"] = card.classes
            # a run resumes only with the recipe it began with, and so only from the bundle it began with
            values["description"] = f"{recipe.description} Starts from {self.name}.".lstrip()
        return recipe.model_copy(update=values)


def open_start(path: Path, work: Path, given: NetworkConfig) -> Start:
    """The start at `path`; a folder is a bundle, whose network may be `given`. Raises BundleError and DataError."""
    if not path.is_dir():
        checkpoint = load_checkpoint(path)
        return Start(str(path), path, checkpoint.recipe.network, checkpoint.data_sources)
    bundle = open_bundle(path)
    card = bundle.card
    name = f"{card.name} {card.version} (model {bundle.model_hash[:12]})"
    return Start(name, work / STARTED, find_network(bundle, given), card.training_data, bundle)


def make_checkpoint(start: Start, bundle: Bundle, recipe: Recipe, held_out: Sequence[Sample]) -> Checkpoint:
    """Rebuild the bundle's network, prove it, measure it on the held-out frames and write the checkpoint of `start`.

    BatchNorm's statistics are those of the recipe's labeled and unlabeled frames. Raises BundleError and DataError.
    """
    frames = [
        frame
        for pools in (open_pools(recipe.labeled), open_pools(recipe.unlabeled, labeled=False))
        for frame in spread([sample for pool in pools for sample in pool.samples], STATISTICS_FRAMES)
    ]
    network = rebuild_network(bundle, start.network, _fit(frames, recipe))
    checkpoint = _describe(start, bundle, recipe, network)
    proof = (fit_to_card(frame.load_image(), bundle.card) for frame in spread(frames, PROOF_FRAMES))
    require_same_labels(bundle, checkpoint.build_predictor(), [bundle.golden_image_hwc, *proof])
    if held_out and len(checkpoint.classes) == len(recipe.classes):
        checkpoint.validation_dice = measure(checkpoint, held_out, "held out").mean_dice
    save_checkpoint(checkpoint, start.checkpoint)
    return checkpoint


def _fit(frames: Sequence[Sample], recipe: Recipe) -> Iterator[Image]:
    for frame in frames:
        image_hwc = frame.load_image()
        fit = plan_fit(image_hwc.shape[0], image_hwc.shape[1], recipe.input_size, recipe.fit)
        yield fit_image(image_hwc, fit)


def _describe(start: Start, bundle: Bundle, recipe: Recipe, network: nn.Module) -> Checkpoint:
    """The rebuilt network as the supervised run that it might have been: its data are what the card says of them."""
    card, run = bundle.card, bundle.card.training
    learned = tuple(
        DataConfig(source=f"bundle:{bundle.folder}", card=source) for source in card.training_data
    )
    values = {
        "name": card.name,
        "description": f"Rebuilt from {start.name}.",
        "init_from": "",
        "method": METHOD,
        "classes": card.classes,
        "labeled": learned or (DataConfig(source=f"bundle:{bundle.folder}"),),
        "unlabeled": (),
    }
    described = recipe.model_copy(update=values)
    method = build_method(described.method_name, described.method_options, start.network, len(card.classes))
    method.networks["network"].load_state_dict(network.state_dict())
    return Checkpoint(
        recipe=described,
        command="" if run is None else run.command,
        commit="" if run is None else run.commit,
        split_hash="" if run is None else run.split_hash,
        step=0 if run is None else run.steps,
        validation_dice=0.0,
        state={"method": method.state_dict()},
    )
