"""Which of the backends can be opened on this machine."""

from __future__ import annotations

from service.backends import BACKENDS, load_backend
from service.errors import BackendError


def is_installed(name: str) -> bool:
    """Whether a backend's library is there."""
    try:
        load_backend(name)
    except BackendError:
        return False
    return True


RUNTIMES = [name for name in BACKENDS if name != "fake" and is_installed(name)]
