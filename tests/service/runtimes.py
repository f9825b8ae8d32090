"""Which of the backends run bundles on this machine."""

from __future__ import annotations

from service.backends import BACKENDS, EXTRAS, load_backend
from service.backends.base import list_precisions
from service.backends.engine_cache import EngineKeeper
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import open_bundle
from service.errors import BackendError


def runs_here(name: str) -> bool:
    """Whether a backend runs any bundle here. One that needs an engine for each is tested in tests/gpu."""
    try:
        factory = load_backend(name)
    except BackendError:
        return False
    if isinstance(factory, type) and issubclass(factory, EngineKeeper):
        return False
    return bool(list_precisions(factory, open_bundle(DEFAULT_BUNDLE)))


RUN_HERE = [name for name in BACKENDS if runs_here(name)]
RUNTIMES = [name for name in RUN_HERE if name != "fake"]
ON_PROCESSORS = [name for name in RUNTIMES if EXTRAS[name] == "cpu"]
"""Those that share the processor's cores between calls made at once."""
