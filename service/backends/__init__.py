"""Inference runtimes: one file each, the same small protocol, imported only when chosen."""

from __future__ import annotations

import importlib
from typing import cast

from service.backends.base import Backend, BackendFactory
from service.contract.bundle import Bundle
from service.errors import BackendError

BACKENDS: dict[str, str] = {
    "onnxruntime": "service.backends.onnxruntime:OnnxRuntimeBackend",
    "fake": "service.backends.fake:FakeBackend",
}
"""Name -> "module:Class". The class opens a bundle: `Class(bundle, batch_sizes=..., threads=...)`."""

EXTRAS = {"onnxruntime": "cpu"}
"""The optional dependencies, as in `pip install surgseg[cpu]`, that bring a backend's library."""

AUTO_ORDER = ("onnxruntime",)
"""What `auto` tries, fastest first; the first whose library is installed is taken."""


def open_backend(
    name: str, bundle: Bundle, *, batch_sizes: tuple[int, ...] = (1,), threads: int | None = None
) -> Backend:
    """Open a bundle with the backend `name`, or with the first installed one for "auto".

    `threads` is the number one inference may use; None means every physical core this process may run on.
    Call it from the thread that will use the backend. Raises BackendError when the name is unknown or the
    library is missing, BundleError when the runtime refuses the model or the graph is not what the card says.
    """
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"batch sizes are positive, got {batch_sizes}")
    if name == "auto":
        return _open_first_installed(bundle, sizes, threads)
    return load_backend(name)(bundle, batch_sizes=sizes, threads=threads)


def load_backend(name: str) -> BackendFactory:
    """Import a backend's class. Raises BackendError that names the extra to install."""
    if name not in BACKENDS:
        raise BackendError(
            f"There is no backend called {name!r}.",
            "auto, " + ", ".join(BACKENDS),
            "Choose one with --backend or SURGSEG_BACKEND.",
        )
    module_name, _, class_name = BACKENDS[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendError(
            f"The library of the {name} backend is not installed ({error}).",
            f"the extra `{EXTRAS.get(name, name)}`",
            f"Install it: pip install 'surgseg[{EXTRAS.get(name, name)}]'.",
        ) from error
    return cast(BackendFactory, getattr(module, class_name))


def _open_first_installed(bundle: Bundle, batch_sizes: tuple[int, ...], threads: int | None) -> Backend:
    refusals = []
    for name in AUTO_ORDER:
        try:
            factory = load_backend(name)
        except BackendError as error:
            refusals.append(error)
            continue
        return factory(bundle, batch_sizes=batch_sizes, threads=threads)
    raise refusals[0]
