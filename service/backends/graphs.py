"""A bundle's graph must be what its card says, or everything after it would work on the wrong bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.contract.bundle import Bundle
from service.contract.model_card import CONFIDENCE, MASK, Precision
from service.errors import BundleError


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as a runtime describes it; None is a dimension that is left open."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join('N' if size is None else str(size) for size in self.shape)})"


def check_graph(
    bundle: Bundle, precision: Precision, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> None:
    """Raise BundleError unless the graph of a precision has the card's outputs and all is uint8 `(N, H, W[, 3])`."""
    path = bundle.path_of(precision)
    size = bundle.card.input_size
    if missing := sorted(set(bundle.card.outputs) - {output.name for output in outputs}):
        raise graph_error(path, f"has no output {missing[0]!r}", "the outputs that its card names")
    _check_tensor(path, Tensor("image", "uint8", (None, size.height, size.width, 3)), inputs)
    for name in (MASK, CONFIDENCE) if bundle.card.has_confidence else (MASK,):
        expected = Tensor(name, "uint8", (None, size.height, size.width))
        _check_tensor(path, expected, [each for each in outputs if each.name == name])


def graph_error(path: Path, found: str, expected: str) -> BundleError:
    """The error of a model that is not what it should be."""
    return BundleError(f"{path} {found}.", expected, "Export the bundle again with `surgseg-export bundle`.")


def _check_tensor(path: Path, expected: Tensor, found: Sequence[Tensor]) -> None:
    if list(found) != [expected]:
        described = "; ".join(map(str, found)) or "none"
        raise graph_error(path, f"has for {expected.name!r}: {described}", f"one {expected} with a dynamic N")
