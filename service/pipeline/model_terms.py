"""How a service opens the models it is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.backends import open_backend
from service.backends.base import Backend
from service.contract.bundle import Bundle
from service.contract.model_card import Precision
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """The arguments of `open_backend` that do not depend on the bundle."""

    backend: str
    batch_sizes: tuple[int, ...]
    threads: int | None
    precision: Precision | None
    engines: Path | None
    compiled: Path | None = None

    @classmethod
    def read(cls, settings: Settings) -> ModelTerms:
        """As the settings say."""
        return cls(
            backend=settings.backend,
            batch_sizes=settings.batch_sizes,
            threads=settings.threads,
            precision=settings.precision,
            engines=settings.engines,
        )

    def open(self, bundle: Bundle) -> Backend:
        """See `open_backend`."""
        return open_backend(
            self.backend,
            bundle,
            batch_sizes=self.batch_sizes,
            threads=self.threads,
            precision=self.precision,
            engines=self.engines,
            compiled=self.compiled,
        )
