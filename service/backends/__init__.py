"""Inference runtimes: one file each, the same small protocol, imported only when chosen."""

from __future__ import annotations

import importlib
import logging
from typing import cast

import numpy as np

from service.backends.base import GOLDEN_AGREEMENT, Backend, BackendFactory, measure_golden
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
"""What `auto` tries, fastest first: it takes the first that is installed, has no reason against this machine, and gives
the bundle's golden mask."""

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
        return _open_fastest(bundle, sizes, threads, precision)
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


def _open_fastest(
    bundle: Bundle, batch_sizes: tuple[int, ...], threads: int | None, precision: str | None
) -> Backend:
    """The first of AUTO_ORDER that does. Raises BackendError where none is installed, and what the last one raises."""
    refusals = []
    for name in AUTO_ORDER:
        try:
            factory = load_backend(name)
        except BackendError as error:
            refusals.append(error)
            _log.info("auto passes over %s: it is not installed", name)
            continue
        if reason := factory.reason_against(precision):
            _log.info("auto passes over %s: %s", name, reason)
            continue
        backend = factory(bundle, batch_sizes=batch_sizes, threads=threads, precision=precision)
        if name == AUTO_ORDER[-1] or (reason := _find_other_labels(bundle, backend)) is None:
            return backend
        _log.warning("auto passes over %s: %s", name, reason)
        backend.close()
    raise refusals[-1]


def _find_other_labels(bundle: Bundle, backend: Backend) -> str | None:
    """What is wrong with the golden picture's mask, in words; None where nothing is."""
    count = backend.batch_sizes[0]
    masks_nhw = backend.segment(np.repeat(bundle.golden_image_hwc[None], count, axis=0))
    agreement = measure_golden(bundle, masks_nhw)
    if agreement >= GOLDEN_AGREEMENT:
        return None
    return f"in {backend.precision} it gives {agreement:.2%} of the golden picture's labels"
