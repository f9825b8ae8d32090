"""Training methods, each a table entry: name -> "module:Class". A method owns every network it needs."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from service.errors import DataError
from training.config import NetworkConfig
from training.method import Method

METHODS = {
    "supervised": "training.methods.supervised:Supervised",
    "mean_teacher": "training.methods.mean_teacher:MeanTeacher",
    "cross_pseudo_supervision": "training.methods.cross_pseudo_supervision:CrossPseudoSupervision",
    "unimatch": "training.methods.unimatch:UniMatch",
    "min_max_similarity": "training.methods.min_max_similarity:MinMaxSimilarity",
}


def find_method(name: str) -> type[Method]:
    """The class of a method. Raises DataError that names the nearest known one."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Check [method] name in the recipe."
        raise DataError(f"There is no method {name!r}.", f"one of {', '.join(METHODS)}", hint)
    module, class_name = METHODS[name].split(":")
    method_class: type[Method] = getattr(importlib.import_module(module), class_name)
    return method_class


def build_method(name: str, options: dict[str, Any], network: NetworkConfig, classes: int) -> Method:
    """A freshly initialised method; `options` is the recipe's [method] table without its name."""
    method_class = find_method(name)
    return method_class(method_class.parse_options(options), network, classes)
