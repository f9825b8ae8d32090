"""Cards of older formats, read as if they had been written in the newest one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]


def bring_up_to_date(card: object, newest: int) -> object:
    """The fields of a card in the format `newest`, from any older one.

    Raises ValueError for a format that is not known; what is no card at all is given back for the schema to refuse.
    """
    if not isinstance(card, dict):
        return card
    found = card.get("format_version")
    if type(found) is not int or not 1 <= found <= newest:
        raise ValueError(f"format_version is {found!r}; this surgseg reads 1 to {newest}")
    for version in range(found, newest):
        card = {**_MIGRATIONS[version](dict(card)), "format_version": version + 1}
    return card


def _name_the_provider(card: Fields) -> Fields:
    """Format 2 has a graph for each precision, and a name for each execution provider of ONNX Runtime."""
    measured = [
        {**each, "backend": "onnxruntime-cpu"} if each.get("backend") == "onnxruntime" else each
        for each in card.get("parity", [])
    ]
    return {**card, "parity": measured}


_MIGRATIONS: dict[int, Callable[[Fields], Fields]] = {1: _name_the_provider}
"""Format version -> what makes its fields those of the next. Each stays as it is for as long as such bundles exist."""
