"""Fills a model card from a checkpoint and from evaluations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from service.contract.model_card import CONFIDENCE, MASK, DataSource, Metric, ModelCard, TrainingRun
from service.errors import DataError
from training.checkpoint import Checkpoint
from training.networks import count_parameters


@dataclass(frozen=True)
class Description:
    """What a checkpoint cannot know about itself. Empty texts are filled from the checkpoint.

    `learned_before` is the data of the network that its training started from.
    """

    name: str = ""
    version: str = "0.1.0"
    text: str = ""
    licence: str = "Apache-2.0"
    metrics: tuple[Metric, ...] = ()
    limits: tuple[str, ...] = ()
    intensities: str = ""
    learned_before: tuple[DataSource, ...] = ()


def draft_card(
    checkpoint: Checkpoint,
    predictor: nn.Module,
    description: Description,
    *,
    view: str | None = None,
    has_confidence: bool = False,
) -> ModelCard:
    """The card of a view of `checkpoint`, which is `predictor`; still without hashes and parity."""
    foreground = ", ".join(info.name for info in checkpoint.classes[1:])
    text = f"Labels {foreground}: {checkpoint.network} network, {checkpoint.method} training."
    return ModelCard(
        name=description.name or checkpoint.recipe_name,
        version=description.version,
        description=description.text or text,
        classes=checkpoint.classes,
        input_size=checkpoint.input_size,
        fit=checkpoint.recipe.fit,
        intensities=description.intensities or checkpoint.recipe.intensities,
        outputs=(MASK, CONFIDENCE) if has_confidence else (MASK,),
        network=checkpoint.network,
        network_options=checkpoint.recipe.network.options,
        method=checkpoint.method,
        view=view or "",
        parameters=count_parameters(predictor),
        training_data=tuple(dict.fromkeys((*description.learned_before, *checkpoint.data_sources))),
        training=TrainingRun(
            recipe=checkpoint.recipe_name,
            command=checkpoint.command,
            commit=checkpoint.commit,
            split_hash=checkpoint.split_hash,
            seed=checkpoint.seed,
            steps=checkpoint.step,
        ),
        metrics=description.metrics,
        licence=description.licence,
        limits=description.limits,
    )


def read_metric(path: Path) -> Metric:
    """The figures of an evaluation written by `surgseg-export evaluate --json`. Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        overall, videos = content["overall"], content["videos"]
        classes = content.get("classes", {})  # evaluations of older versions have none
        return Metric(
            data=content["data"],
            frames=content["frames"],
            dice=overall["dice"]["mean"],
            iou=overall["iou"]["mean"],
            videos={name: figures["dice"]["mean"] for name, figures in videos.items()},
            classes={name: figures["dice"] for name, figures in classes.items() if figures["frames"]},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no evaluation ({error.__class__.__name__}: {str(error).splitlines()[0]}).",
            "a file written by `surgseg-export evaluate --json`",
            "Evaluate again and name the file it writes.",
        ) from error
