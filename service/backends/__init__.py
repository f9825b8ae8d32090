"""Inference runtimes: one file each, the same small protocol, imported only when chosen."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import cast

import numpy as np

from service.backends.base import (
    Backend,
    BackendFactory,
    SlowCompiler,
    is_golden,
    list_precisions,
    measure_golden,
)
from service.backends.engine_cache import EngineKeeper
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.errors import BackendError

BACKENDS: dict[str, str] = {
    "tensorrt": "service.backends.tensorrt:TensorRtBackend",
    "onnxruntime-tensorrt": "service.backends.onnxruntime_tensorrt:OnnxRuntimeTensorRtBackend",
    "onnxruntime-cuda": "service.backends.onnxruntime_cuda:OnnxRuntimeCudaBackend",
    "openvino": "service.backends.openvino:OpenVinoBackend",
    "onnxruntime-cpu": "service.backends.onnxruntime_cpu:OnnxRuntimeBackend",
    "fake": "service.backends.fake:FakeBackend",
}
"""Name -> "module:Class". The class opens a bundle: `Class(bundle, batch_sizes=..., threads=..., precision=...)`."""

EXTRAS = {
    "tensorrt": "gpu",
    "onnxruntime-tensorrt": "gpu",
    "onnxruntime-cuda": "gpu",
    "openvino": "cpu",
    "onnxruntime-cpu": "cpu",
}
"""The optional dependencies, as in `pip install surgseg[cpu]`, that bring a backend's library."""

AUTO_ORDER: tuple[tuple[str, Precision], ...] = (
    ("tensorrt", "int8"),
    ("tensorrt", "float16"),
    ("onnxruntime-cuda", "float16"),
    ("tensorrt", "float32"),
    ("onnxruntime-cuda", "float32"),
    ("openvino", "int8"),
    ("onnxruntime-cpu", "int8"),
    ("openvino", "bfloat16"),
    ("onnxruntime-cpu", "float32"),
    ("openvino", "float32"),
)
"""What `auto` tries, fastest first: it takes the first that is installed, that this machine runs this bundle with, that
opens, and that gives the bundle's golden mask.

The order on processors is measured (docs/results/runtimes.md). That on GPUs is not: no GPU was there to measure it on.
`onnxruntime-tensorrt` is left out because opening it can mean to build an engine for minutes."""

_log = logging.getLogger(__name__)


def open_backend(
    name: str,
    bundle: Bundle,
    *,
    batch_sizes: tuple[int, ...] = (1,),
    threads: int | None = None,
    precision: Precision | None = None,
    engines: Path | None = None,
    compiled: Path | None = None,
) -> Backend:
    """Open a bundle with the backend `name`, or with the fastest of this machine for "auto".

    `threads` is the number one inference may use; None means every physical core this process may run on. `precision`
    None means the fastest that this machine runs this bundle with. `engines` is where TensorRT's engines lie, None the
    user's cache; other backends have none. `compiled` is a folder in which this or another process has opened the
    same bundle before, or will: what takes long to compile is compiled once. Call it from the thread that
    will use the backend.

    Raises BackendError when the name is unknown, the library is missing or the precision is not to be had,
    BundleError when the runtime refuses the model or the graph is not what the card says.
    """
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"batch sizes are positive, got {batch_sizes}")
    if name == "auto":
        return _open_fastest(bundle, sizes, threads, precision, engines, compiled)
    factory = load_backend(name, engines, compiled)
    chosen = _choose_precision(name, factory, bundle, precision)
    return factory(bundle, batch_sizes=sizes, threads=threads, precision=chosen)


def load_backend(name: str, engines: Path | None = None, compiled: Path | None = None) -> BackendFactory:
    """Import a backend's class; the folders are those of `open_backend`.

    Raises BackendError that names the extra to install.
    """
    if name not in BACKENDS:
        raise BackendError(
            f"There is no backend called {name!r}.",
            "auto, " + ", ".join(BACKENDS),
            "Choose one with --backend or SURGSEG_BACKEND.",
        )
    module_name, _, class_name = BACKENDS[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError) as error:  # OSError: a library that the module loads is missing
        raise BackendError(
            f"The library of the {name} backend is not installed ({error}).",
            f"the extra `{EXTRAS.get(name, name)}`",
            f"Install it: pip install 'surgseg[{EXTRAS.get(name, name)}]'.",
        ) from error
    backend_class = getattr(module, class_name)
    if engines is not None and issubclass(backend_class, EngineKeeper):
        backend_class = backend_class.kept_in(engines)
    if compiled is not None and issubclass(backend_class, SlowCompiler):
        backend_class = backend_class.reusing(compiled)
    return cast(BackendFactory, backend_class)


def _choose_precision(
    name: str, factory: BackendFactory, bundle: Bundle, asked: Precision | None
) -> Precision:
    runs = list_precisions(factory, bundle)
    if asked in runs or (asked is None and runs):
        return asked or runs[0]
    if asked is not None and asked not in factory.precisions:
        reason: str | None = "it cannot"
    else:
        reason = factory.reason_against(bundle, asked or factory.precisions[0])
    raise BackendError(
        f"The backend {name} does not run this bundle{f' in {asked}' if asked else ''}: {reason}.",
        " or ".join(runs) or "a backend of this machine",
        "Choose another SURGSEG_PRECISION, or another backend." if runs else "Choose another --backend.",
    )


def _open_fastest(
    bundle: Bundle,
    batch_sizes: tuple[int, ...],
    threads: int | None,
    asked: Precision | None,
    engines: Path | None,
    compiled: Path | None,
) -> Backend:
    """The first of AUTO_ORDER that does, in the precision asked for if one is. Raises BackendError where none does."""
    missing = [name for name in dict(AUTO_ORDER) if not _is_installed(name)]
    if missing:
        _log.info("auto passes over what is not installed: %s", ", ".join(missing))
    passed_over = [f"{name}: it is not installed" for name in missing]
    for name, precision in AUTO_ORDER:
        if name in missing or asked not in (None, precision):
            continue
        factory = load_backend(name, engines, compiled)
        reason = factory.reason_against(bundle, precision)
        if reason is None:
            backend, reason = _try(factory, bundle, batch_sizes, threads, precision)
            if backend is not None:
                _log.info(
                    "auto takes %s in %s: the fastest that this bundle and machine have", name, precision
                )
                return backend
            _log.warning("auto passes over %s in %s: %s", name, precision, reason)
        else:
            _log.info("auto passes over %s in %s: %s", name, precision, reason)
        passed_over.append(f"{name} in {precision}: {reason}")
    raise BackendError(
        f"No backend runs this bundle here ({'; '.join(passed_over) or f'none computes in {asked}'}).",
        "one that does",
        "Install the extra `cpu`: pip install 'surgseg[cpu]'; or choose another SURGSEG_PRECISION.",
    )


def _is_installed(name: str) -> bool:
    try:
        load_backend(name)
    except BackendError:
        return False
    return True


def _try(
    factory: BackendFactory,
    bundle: Bundle,
    batch_sizes: tuple[int, ...],
    threads: int | None,
    precision: Precision,
) -> tuple[Backend | None, str]:
    """The opened backend, or None and why it is of no use. Raises BundleError for a graph that is not the card's."""
    try:
        backend = factory(bundle, batch_sizes=batch_sizes, threads=threads, precision=precision)
    except BackendError as error:
        return None, error.found.rstrip(".")
    reason = _find_other_labels(bundle, backend)
    if reason is None:
        return backend, ""
    backend.close()
    return None, reason


def _find_other_labels(bundle: Bundle, backend: Backend) -> str | None:
    """What is wrong with the golden picture's mask, in words; None where nothing is."""
    count = backend.batch_sizes[0]
    masks_nhw = backend.segment(np.repeat(bundle.golden_image_hwc[None], count, axis=0))
    if is_golden(bundle, backend.precision, masks_nhw):
        return None
    return f"it gives {measure_golden(bundle, masks_nhw):.2%} of the golden picture's labels"
