"""Training methods, each a table entry: name -> "module:Class". A method owns every network it needs."""

from __future__ import annotations

from typing import Any

from training.config import NetworkConfig
from training.method import Method
from training.registry import find_entry

METHODS = {
    "supervised": "training.methods.supervised:Supervised",
    "mean_teacher": "training.methods.mean_teacher:MeanTeacher",
    "cross_pseudo_supervision": "training.methods.cross_pseudo_supervision:CrossPseudoSupervision",
    "unimatch": "training.methods.unimatch:UniMatch",
    "distillation": "training.methods.distillation:Distillation",
    "min_max_similarity": "training.methods.min_max_similarity:MinMaxSimilarity",
    "self_ensembling_contrastive": "training.methods.self_ensembling_contrastive:SelfEnsemblingContrastive",
}


def find_method(name: str) -> type[Method]:
    """The class of a method. Raises DataError that names the nearest known one."""
    method_class: type[Method] = find_entry(METHODS, "method", name, "Check [method] name in the recipe.")
    return method_class


def build_method(name: str, options: dict[str, Any], network: NetworkConfig, classes: int) -> Method:
    """A freshly initialised method; `options` is the recipe's [method] table without its name."""
    method_class = find_method(name)
    return method_class(method_class.parse_options(options), network, classes)
