"""Inference runtimes: one file each, the same small protocol, imported only when chosen."""

from __future__ import annotations

import importlib
import logging
from typing import cast

from service.backends.base import Backend, BackendFactory
from service.contract.bundle import Bundle
from service.errors import BackendError

BACKENDS: dict[str, str] = {
    "onnxruntime": "service.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "service.backends.openvino:OpenVinoBackend",
    "fake": "service.backends.fake:FakeBackend",
}
"""Name -> "module:Class". The class opens a bundle: `Class(bundle, batch_sizes=..., threads=..., precision=...)`."""

EXTRAS = {"onnxruntime": "cpu", "openvino": "cpu"}
"""The optional dependencies, as in `pip install surgseg[cpu]`, that bring a backend's library."""

AUTO_ORDER = ("openvino", "onnxruntime")
"""What `auto` tries, fastest first: the first that is installed and has no reason against this machine is taken."""

_log = logging.getLogger(__name__)


def open_backend(
    name: str,
    bundle: Bundle,
    *,
    batch_sizes: tuple[int, ...] = (1,),
    threads: int | None = None,
    precision: str | None = None,
) -> Backend:
    """Open a bundle with the backend `name`, or with the fastest of this machine for "auto".

    `threads` is the number one inference may use; None means every physical core this process may run on. `precision`
    is float32 or bfloat16; None means the fastest that keeps the bundle's labels. Call it from the thread that will
    use the backend. Raises BackendError when the name is unknown, the library is missing or the precision is not to
    be had, BundleError when the runtime refuses the model or the graph is not what the card says.
    """
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"batch sizes are positive, got {batch_sizes}")
    if name == "auto":
        return _choose_backend()(bundle, batch_sizes=sizes, threads=threads, precision=precision)
    return load_backend(name)(bundle, batch_sizes=sizes, threads=threads, precision=precision)


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


def _choose_backend() -> BackendFactory:
    """The first of AUTO_ORDER that is installed and suits the machine. Raises BackendError where there is none."""
    refusals = []
    for name in AUTO_ORDER:
        try:
            factory = load_backend(name)
        except BackendError as error:
            refusals.append(error)
            _log.info("auto passes over %s: it is not installed", name)
            continue
        if reason := factory.reason_against():
            _log.info("auto passes over %s: %s", name, reason)
            continue
        return factory
    raise refusals[-1]
