"""What a change of the model means to a mailbox, to admission, and to the folder of bundles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bench.records import StreamRecord
from service.bench.scenarios import StreamSpec
from service.bench.swap_runs import split_latencies
from service.bundles import DEFAULT_BUNDLE, find_bundle
from service.contract.bundle import Bundle, open_bundle
from service.contract.geometry import plan_fit
from service.contract.model_card import InputSize
from service.errors import BundleError, ForbiddenError, InvalidRequestError, NotFoundError
from service.frames import Frame, SegmentedFrame, Timeline
from service.pipeline.admission import Admission, Admitted
from service.pipeline.approval import check_succeeds, open_approved
from service.pipeline.latest_frames import Mode
from service.pipeline.processor_costs import Newcomer
from service.pipeline.subscription import Answer, ModelChange, Subscription
from service.settings import load_settings

DEFAULT = open_bundle(DEFAULT_BUNDLE)
_FIT = plan_fit(32, 32, InputSize(height=32, width=32))
_CANVAS_HWC = np.zeros((32, 32, 3), np.uint8)


def make_answer(sequence: int, bundle: Bundle) -> Answer:
    frame = Frame("one", sequence, _CANVAS_HWC, _FIT, Timeline(0.0))
    return Answer(SegmentedFrame(frame, _CANVAS_HWC[..., 0], bundle), b"")


@given(
    steps=st.lists(st.sampled_from(["put", "take", "change"]), max_size=60),
    mode=st.sampled_from([Mode.LATEST, Mode.EVERY]),
)
def test_whoever_reads_a_mailbox_always_knows_whose_mask_it_is(steps: list[str], mode: Mode) -> None:
    model = known = DEFAULT
    told: list[int] = []
    mailbox = Subscription("png", mode, model, notify=lambda: told.append(1), on_skipped=lambda: None)
    put = taken = 0
    for number, step in enumerate([*steps, *["take"] * len(steps)]):
        if step == "put":
            put += 1
            mailbox.put(make_answer(put, model), lambda: None)
        elif step == "change":
            model = replace(DEFAULT, fingerprint=f"{number:064x}")
            mailbox.announce(model)
        elif isinstance(item := mailbox.take(), ModelChange):
            known = item.bundle
        elif item is not None:
            taken += 1
            assert item.segmented.bundle is known
        waiting = len(mailbox)
        assert waiting <= (3 if mode is Mode.LATEST else 2 * (put - taken) + 1)
    assert known is model, "and in the end of the last change, where no mask has come yet"
    assert put == taken + mailbox.skipped
    assert len(told) == put + steps.count("change")


def test_a_closed_mailbox_hears_of_nothing() -> None:
    mailbox = Subscription("png", Mode.LATEST, DEFAULT, notify=pytest.fail, on_skipped=pytest.fail)
    mailbox.close()
    mailbox.announce(DEFAULT)
    assert mailbox.take() is None


STREAM = Newcomer("jpeg", 1280, 720, 25.0)


def serve(admission: Admission, stream_id: str, begin_s: float, seconds: float, mask_s: float) -> float:
    """Frames at 25 fps whose masks cost and take `mask_s`; gives when they end."""
    for index in range(round(seconds * 25)):
        now = begin_s + index / 25
        admission.receive(stream_id, now)
        admission.serve(
            stream_id, pixels=1280 * 720, picture_s=0.002, mask_s=mask_s, latency_s=mask_s, now=now
        )
        if index % 12 == 0:
            assert admission.review(now) == ()
    return begin_s + seconds


def test_admission_learns_the_cost_and_the_pace_of_another_model_anew() -> None:
    admission = Admission(4)
    assert isinstance(admission.admit("one", STREAM, 0.0), Admitted)
    now = serve(admission, "one", 0.0, 15.0, mask_s=0.004)
    assert admission.count_used(now) == pytest.approx(25 * 0.006, rel=0.1)
    admission.change_model(0.100, now)
    assert admission.count_used(now) == pytest.approx(25 * 0.102, rel=0.1), "known before its first mask"
    now = serve(admission, "one", now, 20.0, mask_s=0.100)
    assert admission.count_used(now) == pytest.approx(25 * 0.102, rel=0.1)
    admission.change_model(0.004, now)
    now = serve(admission, "one", now, 10.0, mask_s=0.004)
    assert isinstance(admission.admit("two", STREAM, now), Admitted), "the slow model's lateness is forgotten"


def test_a_stream_on_probation_stays_on_probation() -> None:
    admission = Admission(4)
    admission.admit("one", STREAM, 0.0)
    serve(admission, "one", 0.0, 1.0, mask_s=0.004)
    admission.change_model(0.004, 1.0)
    stream = admission._streams["one"]
    assert (stream.is_established, stream.settles_at) == (False, 10.0)


def test_a_bundle_is_found_in_the_operator_s_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    (folder / "deep" / "good").mkdir(parents=True)
    (folder / "file").write_text("")
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "circle").symlink_to(folder / "circle")
    assert find_bundle(folder, "deep/good") == (folder / "deep" / "good").resolve()
    with pytest.raises(ForbiddenError, match="SURGSEG_BUNDLES=FOLDER"):
        find_bundle(None, "deep/good")
    for name in ("../outside", str(tmp_path / "outside"), "link", "/etc", "deep/../../outside"):
        with pytest.raises(ForbiddenError, match="outside the folder"):
            find_bundle(folder, name)
    for name in ("", ".", "deep/..", "file", "none", "circle", "x" * 300, "deep\0good"):
        with pytest.raises(NotFoundError, match="no bundle"):
            find_bundle(folder, name)


def test_only_approved_bundles_are_opened() -> None:
    for approved in (None, frozenset({DEFAULT.fingerprint})):
        assert open_approved(DEFAULT_BUNDLE, approved).fingerprint == DEFAULT.fingerprint
    approved = load_settings(fingerprint=f"{'0' * 64}, {'1' * 64}").fingerprint
    with pytest.raises(BundleError, match=f"Expected {'0' * 64} or {'1' * 64}, as SURGSEG_FINGERPRINT"):
        open_approved(DEFAULT_BUNDLE, approved)
    with pytest.raises(InvalidRequestError, match="SURGSEG_FINGERPRINT"):
        load_settings(fingerprint="0" * 63)


@pytest.mark.parametrize("change", [{"fit": "stretch"}, {"input_size": InputSize(height=64, width=64)}])
def test_a_model_of_other_pictures_cannot_follow(change: dict[str, object]) -> None:
    other = replace(DEFAULT, card=DEFAULT.card.model_copy(update=change))
    check_succeeds(DEFAULT, DEFAULT)
    with pytest.raises(BundleError, match="Start the service anew"):
        check_succeeds(other, DEFAULT)


def test_the_benchmark_tells_frames_of_a_change_from_quiet_ones() -> None:
    record = StreamRecord("1", StreamSpec("jpeg", 1280, 720, 25))
    record.pushed_at_s = [0.5, 3.0, 6.0, 7.0, 7.9, 8.1]
    record.encoded_ms = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert split_latencies([record], [(5.9, 7.0)]) == ([2.0, 6.0], [3.0, 4.0])
