"""Tables of name -> "module:attribute", whose modules are imported only when they are asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from service.errors import DataError


def find_entry(table: Mapping[str, str], kind: str, name: str, remedy: str) -> Any:
    """What the table holds under `name`. Raises DataError that names the nearest known one, or else says the remedy.

    `kind` is what the error calls an entry.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"Did you mean {near[0]}?" if near else remedy
        raise DataError(f"There is no {kind} {name!r}.", f"one of {', '.join(table)}", hint)
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
