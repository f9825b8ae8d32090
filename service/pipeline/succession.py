"""Which model serves, and how another one takes its place while streams run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from service.allocator import return_memory
from service.backends.base import Backend
from service.contract.bundle import Bundle
from service.errors import (
    BackendError,
    BundleError,
    ConflictError,
    SurgsegError,
    SwapRefusedError,
    UnavailableError,
)
from service.pipeline.approval import check_succeeds, name_bundle, open_approved
from service.pipeline.engine import BackendInfo, Engine, EngineParts
from service.pipeline.model_terms import ModelTerms
from service.pipeline.rehearsal import Rehearsal, Rehearsed, make_folder
from service.settings import Settings
from service.telemetry import SwapOutcome

_log = logging.getLogger(__name__)
_CLOSES_S, _GIVES_UP_S = 10.0, 2.0
Step = Literal["checking", "rehearsing", "opening", "switching"]
OpenBackend = Callable[[ModelTerms, Bundle], Backend]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A bundle and what runs it; `backend` is None until the first one is open."""

    bundle: Bundle
    backend: BackendInfo | None = None

    def describe(self) -> dict[str, str]:
        """The labels of `surgseg_model_info`; only for one that is open."""
        card, backend = self.bundle.card, self.backend
        assert backend is not None
        return {
            "name": card.name,
            "version": card.version,
            "network": card.network,
            "backend": backend.name,
            "precision": backend.precision,
            "runtime_version": backend.version,
            "sha256": self.bundle.hash_of(backend.precision),
            "fingerprint": self.bundle.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class SwapRules:
    """`fingerprints` are those of the bundles that may be served, None for any. A bundle must be open and proven after
    `limit_s`, and the last batch of the model before it done after `last_batch_s`."""

    fingerprints: frozenset[str] | None
    limit_s: float
    last_batch_s: float

    @classmethod
    def read(cls, settings: Settings) -> SwapRules:
        """As the settings say."""
        return cls(settings.fingerprint, settings.swap_limit_s, settings.ready_window_s)


class Succession:
    """The model that serves, the bundle before it, and the change that is under way. Any thread may call any method.

    A newcomer is checked, rehearsed in a process of its own, and opened beside the model that serves; any failure up to
    here leaves that one as it was. Then it takes no further batch, `announce` is told, and the newcomer takes the next:
    no frame is lost between the two, and no mask of the one is published after the first of the other. `on_changed` is
    told of what runs the model that serves, the first included.
    """

    def __init__(
        self,
        bundle: Bundle,
        terms: ModelTerms,
        rules: SwapRules,
        parts: EngineParts,
        *,
        open_backend: OpenBackend,
        announce: Callable[[Bundle], None],
        on_changed: Callable[[Bundle, BackendInfo], None],
    ) -> None:
        self.current = ServedModel(bundle)
        self.previous: Bundle | None = None
        self.step: Step | None = None
        """How far the change that is under way has come; None where there is none."""
        self._rules = rules
        self._parts = parts
        self._open_backend = open_backend
        self._announce = announce
        self._on_changed = on_changed
        self._terms = terms
        self._rehearsal = Rehearsal()
        self._busy = threading.Lock()
        self._lock = threading.Lock()
        self._engine = self._make_engine(bundle, terms)
        self._newcomer: Engine | None = None
        self._is_ending = False

    @property
    def last_success_at(self) -> float:
        """When the model that serves last gave a mask, in monotonic seconds."""
        return self._engine.last_success_at

    def start(self) -> Future[BackendInfo]:
        """Open the first model; it serves from when the result is there. See `Engine.start`."""
        opened = self._engine.start()
        opened.add_done_callback(self._begin_first)
        return opened

    def swap(self, folder: Path) -> ServedModel:
        """Have the bundle in `folder` serve; blocks until it does.

        Raises SwapRefusedError with the reason why the model that serves has stayed, ConflictError while another change
        is under way, and UnavailableError when the service ends meanwhile.
        """
        with self._change("swapped"):
            return self._replace(self._check(folder))

    def roll_back(self) -> ServedModel:
        """Have the bundle serve that served before the last change. Raises as `swap` does."""
        with self._change("rolled_back"):
            before = self.previous
            if before is None:
                raise ConflictError(
                    "No other bundle has served before this one.",
                    "a change of the model that can be taken back",
                    "Name the bundle with POST /v1/model.",
                )
            bundle = self._check(before.folder)
            if bundle.fingerprint != before.fingerprint:
                raise BundleError(
                    f"The bundle in {before.folder} is not the one that served before.",
                    f"the fingerprint {before.short_fingerprint}…",
                    "Put it back there, or name another bundle with POST /v1/model.",
                )
            return self._replace(bundle)

    def refuse(self) -> None:
        """Begin no change any more, and give up the one that is under way unless it is about to be done."""
        with self._lock:
            self._is_ending = True
            newcomer = self._newcomer
        self._rehearsal.stop()
        if newcomer is not None:
            newcomer.abandon(_ending())

    def stop(self, timeout_s: float) -> bool:
        """Wait until the backend is closed, after the waiting room was; False when that took too long."""
        self.refuse()
        ends_at = time.monotonic() + timeout_s
        is_settled = self._busy.acquire(timeout=timeout_s)
        if is_settled:
            self._busy.release()  # who comes now is refused at once
        return self._engine.stop(max(0.0, ends_at - time.monotonic())) and is_settled

    def _make_engine(self, bundle: Bundle, terms: ModelTerms, cost_s: float | None = None) -> Engine:
        return Engine(bundle, lambda: self._open_backend(terms, bundle), self._parts, cost_s)

    def _begin_first(self, opened: Future[BackendInfo]) -> None:
        if opened.exception() is None:
            self._install(self.current.bundle, opened.result())
            self._engine.begin()

    def _install(self, bundle: Bundle, backend: BackendInfo) -> None:
        self.current = ServedModel(bundle, backend)
        self._parts.telemetry.describe_model(**self.current.describe())
        self._on_changed(bundle, backend)

    @contextmanager
    def _change(self, outcome: SwapOutcome) -> Iterator[None]:
        """One change from its beginning to its end; whatever is wrong with a bundle becomes SwapRefusedError."""
        if not self._busy.acquire(blocking=False):
            raise ConflictError(
                "Another change of the model is under way.",
                "one at a time",
                "Wait for its answer; GET /v1/model says in `swapping` how far it is.",
            )
        telemetry = self._parts.telemetry
        before = self.current.bundle
        try:
            self._enter("checking")
            yield
            telemetry.count_swap(outcome)
            now = self.current.bundle
            _log.info(
                "%s: %s in place of %s", outcome.replace("_", " "), name_bundle(now), name_bundle(before)
            )
        except (BundleError, BackendError, OSError) as caught:
            error = caught if isinstance(caught, SurgsegError) else _unreadable(caught)
            telemetry.count_swap("refused")
            _log.warning("The model was not changed, and %s serves on: %s", name_bundle(before), error)
            remedy = f"{error.remedy} {name_bundle(before)} serves on."
            raise SwapRefusedError(error.found, error.expected, remedy) from caught
        finally:
            self.step = None
            self._busy.release()

    def _check(self, folder: Path) -> Bundle:
        # the rehearsal looks into the graphs: it opens a bundle of the same fingerprint, which stands for their bytes
        return open_approved(folder, self._rules.fingerprints, has_whole_graphs=True)

    def _replace(self, bundle: Bundle) -> ServedModel:
        ends_at = time.monotonic() + self._rules.limit_s
        check_succeeds(bundle, self.current.bundle)
        with make_folder() as compiled:
            rehearsed = self._rehearse(bundle, replace(self._terms, compiled=compiled))
            newcomer = self._make_engine(bundle, rehearsed.terms, rehearsed.frame_cost_s)
            try:
                info = self._open(newcomer, ends_at)
                self._switch(newcomer, info)
            finally:
                if newcomer is not self._engine:
                    newcomer.abandon(_ending())
                    newcomer.stop(_GIVES_UP_S)
        return self.current

    def _rehearse(self, bundle: Bundle, terms: ModelTerms) -> Rehearsed:
        self._enter("rehearsing")
        try:
            return self._rehearsal.rehearse(bundle, terms, self._rules.limit_s)
        except BackendError:
            self._check_open()  # it was killed because the service ends
            raise

    def _open(self, newcomer: Engine, ends_at: float) -> BackendInfo:
        with self._lock:
            self._newcomer = newcomer
        self._enter("opening")
        try:
            return newcomer.start().result(max(0.0, ends_at - time.monotonic()))
        except (BundleError, BackendError, UnavailableError):
            raise
        except TimeoutError as error:
            raise BackendError(
                f"The bundle was proven, but not open in the service after {self._rules.limit_s:.0f} s in all.",
                "a bundle that opens within SURGSEG_SWAP_LIMIT_S",
                "Raise it, or free the machine.",
            ) from error
        except Exception as error:
            raise BackendError(
                f"The bundle cannot be opened ({error.__class__.__name__}: {error}).",
                "a bundle that this machine opens beside the one that is served",
                "Try it with `surgseg-export check`, and read the service's log.",
            ) from error

    def _switch(self, newcomer: Engine, backend: BackendInfo) -> None:
        with self._lock:
            self._newcomer = None
        self._check_open()
        self._enter("switching")
        before = self._engine
        if not before.retire(self._rules.last_batch_s):
            error = BackendError(
                f"The model that was to be replaced has not finished its batch after {self._rules.last_batch_s:g} s.",
                "a mask",
                "Start the service anew.",
            )
            self._parts.on_failure(error)
            raise error
        self._announce(newcomer.bundle)
        self._engine, self.previous = newcomer, self.current.bundle
        self._install(newcomer.bundle, backend)
        newcomer.begin()
        if not before.stop(_CLOSES_S):
            _log.warning("The model that was replaced was not closed after %g s.", _CLOSES_S)
        return_memory()

    def _enter(self, step: Step) -> None:
        self._check_open()
        self.step = step

    def _check_open(self) -> None:
        if self._is_ending:
            raise _ending()


def _unreadable(error: OSError) -> BundleError:
    return BundleError(
        f"The bundle cannot be read ({error}).", "files that the service may read", "Check their permissions."
    )


def _ending() -> UnavailableError:
    return UnavailableError("The service is shutting down.", "a service that goes on", "Try another one.")
