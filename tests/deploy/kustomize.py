"""Renders a kustomization of the kind that deploy/kubernetes uses: resources, components, and lists of JSON patches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    """The objects of a kustomization, patched. Raises ValueError where it uses anything else."""
    return _render(folder, [])


def add_component(manifests: list[Manifest], folder: Path) -> list[Manifest]:
    """The objects that they are with a component: its own added, theirs patched."""
    return _render(folder, copy.deepcopy(manifests))


def _render(folder: Path, manifests: list[Manifest]) -> list[Manifest]:
    kustomization = read_documents(folder / "kustomization.yaml")[0]
    if unknown := kustomization.keys() - {"apiVersion", "kind", "resources", "patches"}:
        raise ValueError(f"{folder}: {min(unknown)} is not rendered here")
    for name in kustomization["resources"]:
        path = folder / name
        manifests += render(path) if path.is_dir() else read_documents(path)
    for patch in kustomization.get("patches", []):
        target = patch["target"]
        (index,) = [
            number
            for number, manifest in enumerate(manifests)
            if (manifest["kind"], manifest["metadata"]["name"]) == (target["kind"], target["name"])
        ]
        operations = read_documents(folder / patch["path"])[0]
        manifests[index] = jsonpatch.apply_patch(manifests[index], operations)
    return manifests


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
