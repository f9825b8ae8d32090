"""Numbers in an address: plain decimal ones. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from service.errors import InvalidRequestError

_WHOLE = re.compile(r"[0-9]{1,20}")
_DECIMAL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")


def read_number(query: Mapping[str, str], name: str, least: float, most: float) -> float | None:
    """A number of a query, None where it is absent; whole where `least` is an int.

    Raises InvalidRequestError for anything that Python would take and nobody means, such as +5, 1_0, ' 5', 5e0 or nan,
    and for numbers out of range.
    """
    text = query.get(name)
    if text is None:
        return None
    is_whole = isinstance(least, int)
    found = (_WHOLE if is_whole else _DECIMAL).fullmatch(text)
    if found is None or not least <= float(text) <= most:
        raise InvalidRequestError(
            f"The {name} is {text[:40]!r}.",
            f"a {'whole number' if is_whole else 'number'} from {least} to {most}, in plain digits",
            "Change it, or leave it out.",
        )
    return float(text)
