"""A change of the model in the real pipeline: what goes wrong, and when exactly the one gives way to the other."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.contract.bundle import Bundle, open_bundle, save_card
from service.errors import BackendError, ConflictError, SwapRefusedError, UnavailableError
from service.pipeline.latest_frames import Mode
from service.pipeline.model_terms import ModelTerms
from service.pipeline.pipeline import Pipeline
from service.pipeline.subscription import Answer, ModelChange
from service.settings import Settings
from service.telemetry import Telemetry
from tests.service.pipeline_rig import WAIT_S, HeldBackend, Rig, eventually, picture

LIMIT_S = 60.0


class SwapRig(Rig):
    """A rig with a backend of its own for each model; `opening` is called before all but the first are open."""

    @classmethod
    def make(cls, bundle: Bundle, **options: Any) -> SwapRig:
        terms = {"backend": "fake", "swap_limit_s": LIMIT_S, "ready_window_s": WAIT_S, "batch_sizes": (1, 2)}
        settings = Settings(_env_file=None, deadline_s=WAIT_S, admission=False, **{**terms, **options})
        telemetry, fatal = Telemetry(settings.batch_sizes), []
        pipeline = Pipeline(
            bundle, settings, telemetry, fatal.append, open_backend=lambda *opened: rig.open_model(*opened)
        )
        rig = cls(pipeline, HeldBackend((1, 2), 2), telemetry, fatal)
        rig.opened = []
        rig.opening = lambda: None
        pipeline.start().result(WAIT_S)
        eventually(pipeline.is_ready)
        return rig

    def open_model(self, terms: ModelTerms, bundle: Bundle) -> HeldBackend:
        if self.opened:
            self.opening()
            self.backend = HeldBackend(terms.batch_sizes, 2)
        self.opened.append((bundle.card.version, self.backend))
        return self.backend


@pytest.fixture(scope="module")
def bundles(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small bundle in three versions that differ in nothing but their cards."""
    made = {}
    for version in ("first", "second", "third"):
        made[version] = tmp_path_factory.mktemp("versions") / version
        shutil.copytree(small_bundle, made[version])
        card = open_bundle(small_bundle).card
        save_card(card.model_copy(update={"version": version}), made[version])
    return made


@pytest.fixture
def rig(bundles: dict[str, Path]) -> Iterator[SwapRig]:
    made = SwapRig.make(open_bundle(bundles["first"]))
    yield made
    for _, backend in made.opened:
        backend.gate.set()
    assert made.pipeline.stop(WAIT_S) or made.fatal
    assert all(backend.is_closed for _, backend in made.opened)


def test_the_batch_under_way_ends_before_the_next_model_begins(
    rig: SwapRig, bundles: dict[str, Path]
) -> None:
    stream, mailbox = rig.open(Mode.EVERY)
    first = rig.backend
    first.hold()
    rig.push_lossless(stream, picture(200), 0)
    assert first.entered.wait(WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(rig.pipeline.models.swap, bundles["second"])
        eventually(lambda: rig.pipeline.models.step == "switching")
        rig.push_lossless(stream, picture(20), 0)
        eventually(lambda: stream.ledger.pending == 2)
        second = rig.backend
        proofs = len(second.calls)
        assert not first.is_closed
        assert (len(mailbox), rig.pipeline.bundle.card.version) == (0, "first")
        with pytest.raises(ConflictError, match="under way"):
            rig.pipeline.models.roll_back()
        first.gate.set()
        assert changing.result(WAIT_S).bundle.card.version == "second"
    eventually(lambda: len(mailbox) == 3)
    items = [mailbox.take() for _ in range(3)]
    assert [type(item) for item in items] == [Answer, ModelChange, Answer]
    versions = [item.segmented.bundle.card.version for item in items if isinstance(item, Answer)]
    assert versions == ["first", "second"]
    assert (first.is_closed, second.is_closed, len(second.calls) - proofs) == (True, False, 1)
    assert stream.subscribe("png", Mode.EVERY, lambda: None).bundle.card.version == "second"
    assert rig.metric("surgseg_model_swaps_total", outcome="swapped") == 1
    families = {family.name: family.samples for family in rig.telemetry.registry.collect()}
    assert [sample.labels["version"] for sample in families["surgseg_model"]] == ["second"]
    assert rig.pipeline.is_ready()


def test_a_roll_back_takes_back_the_last_change_and_another_one_itself(
    rig: SwapRig, bundles: dict[str, Path]
) -> None:
    models = rig.pipeline.models
    with pytest.raises(ConflictError, match="No other bundle has served"):
        models.roll_back()
    models.swap(bundles["second"])
    assert [models.roll_back().bundle.card.version for _ in range(2)] == ["first", "second"]
    assert [version for version, _ in rig.opened] == ["first", "second", "first", "second"]
    assert rig.metric("surgseg_model_swaps_total", outcome="rolled_back") == 2


def test_a_bundle_that_was_changed_since_it_served_is_not_rolled_back_to(
    rig: SwapRig, bundles: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(bundles["third"], tmp_path / "copy")
    models = rig.pipeline.models
    models.swap(tmp_path / "copy")
    models.swap(bundles["second"])
    save_card(open_bundle(tmp_path / "copy").card.model_copy(update={"version": "other"}), tmp_path / "copy")
    with pytest.raises(SwapRefusedError, match="not the one that served before"):
        models.roll_back()
    assert models.current.bundle.card.version == "second"


def fail_to_open() -> None:
    raise RuntimeError("no more memory on the device")


def test_what_fails_only_in_the_service_leaves_the_model_as_it_was(
    rig: SwapRig, bundles: dict[str, Path]
) -> None:
    threads = threading.active_count()
    first = rig.backend
    for opening, reason in (
        (fail_to_open, "no more memory on the device"),
        (lambda: _raise(BackendError("Broken.", "a device", "Mend it.")), "Broken"),
    ):
        rig.opening = opening
        with pytest.raises(SwapRefusedError, match=rf"{reason}.*small-threshold first .* serves on"):
            rig.pipeline.models.swap(bundles["second"])
    assert rig.pipeline.models.current.bundle.card.version == "first"
    assert (first.is_closed, rig.fatal, rig.pipeline.models.step) == (False, [], None)
    assert threading.active_count() == threads
    assert rig.metric("surgseg_model_swaps_total", outcome="refused") == 2


def test_a_model_that_opens_too_late_is_closed_again(bundles: dict[str, Path]) -> None:
    rig = SwapRig.make(open_bundle(bundles["first"]), swap_limit_s=3.0)
    goes_on = threading.Event()
    rig.opening = lambda: goes_on.wait(WAIT_S)
    threads = threading.active_count()
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(rig.pipeline.models.swap, bundles["second"])
        with pytest.raises(SwapRefusedError, match="SURGSEG_SWAP_LIMIT_S"):
            changing.result(4 * WAIT_S)
    goes_on.set()
    eventually(lambda: threading.active_count() == threads)
    assert all(backend.is_closed for version, backend in rig.opened if version == "second")
    assert rig.pipeline.models.current.bundle.card.version == "first"
    assert rig.pipeline.stop(WAIT_S)


def test_a_service_that_ends_gives_up_the_change(rig: SwapRig, bundles: dict[str, Path]) -> None:
    goes_on = threading.Event()
    rig.opening = lambda: goes_on.wait(WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(rig.pipeline.models.swap, bundles["second"])
        eventually(lambda: rig.pipeline.models.step == "opening")
        rig.pipeline.refuse_new()
        goes_on.set()
        with pytest.raises(UnavailableError, match="shutting down"):
            changing.result(WAIT_S)
    with pytest.raises(UnavailableError, match="shutting down"):
        rig.pipeline.models.swap(bundles["second"])
    assert rig.metric("surgseg_model_swaps_total", outcome="refused") == 0


def _raise(error: Exception) -> None:
    raise error
