"""What the metrics say of open streams, of decoders and of those who are turned away."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.audit.meter import AuditMeter
from service.contract.bundle import open_bundle
from service.errors import UnavailableError
from service.gauges import DecoderGauges, StreamGauges, StreamSight
from service.pipeline.latest_frames import Mode
from service.processes import Usage
from service.streams.pushed_video import PushedVideo
from tests.bitstreams import encode_codes
from tests.conftest import REPOSITORY
from tests.service.pipeline_rig import WAIT_S, Rig, eventually, picture, running_rigs

STATES = ("starting", "running", "stalled", "restarting", "ended", "failed")


@pytest.fixture
def make_rig(small_bundle: Path) -> Iterator[Callable[..., Rig]]:
    with running_rigs(open_bundle(small_bundle)) as make:
        yield make


def test_a_stream_that_stands_still_is_told_by_the_age_of_its_last_mask(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    assert rig.metric("surgseg_stream_mask_age_seconds", stream="1") is None
    stream, _ = rig.open()
    eventually(lambda: (rig.metric("surgseg_stream_mask_age_seconds", stream="1") or 0) > 0.1)
    pushed_at = time.monotonic()
    stream.push(picture(200), 0)
    eventually(lambda: stream.ledger.segmented == 1)
    age_s = rig.metric("surgseg_stream_mask_age_seconds", stream="1")
    assert age_s is not None
    assert 0 <= age_s < time.monotonic() - pushed_at
    assert rig.metric("surgseg_stream_promise_seconds", stream="1") == 0.05
    states = {name: rig.metric("surgseg_stream_state", stream="1", state=name) for name in STATES}
    assert states == {**dict.fromkeys(STATES, 0.0), "running": 1.0}
    assert (rig.metric("surgseg_streams"), rig.metric("surgseg_viewers")) == (1, 1)
    stream.close()
    eventually(lambda: rig.metric("surgseg_streams") == 0)
    assert rig.metric("surgseg_stream_mask_age_seconds", stream="1") is None
    assert rig.metric("surgseg_stream_state", stream="1", state="running") is None


def test_a_lossless_stream_owes_no_mask_in_time(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.open(Mode.EVERY)
    assert rig.metric("surgseg_stream_state", stream="1", state="running") == 1
    assert rig.metric("surgseg_stream_mask_age_seconds", stream="1") is None
    assert rig.metric("surgseg_stream_promise_seconds", stream="1") is None


def test_a_killed_decoder_is_counted_by_its_cause(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    stream, _ = rig.open(Mode.LATEST, "h264")
    causes = ("ended", "hung", "source")
    restarts = [rig.metric("surgseg_decoder_restarts_total", stream="1", cause=cause) for cause in causes]
    assert restarts == [0, 0, 0]
    stream.push(encode_codes([1])[0], 0)
    eventually(lambda: stream.ledger.segmented == 1)
    assert rig.metric("surgseg_decoder_processes") == 1
    assert (rig.metric("surgseg_decoder_memory_bytes") or 0) > 10 * 2**20
    assert (rig.metric("surgseg_decoder_cpu_seconds_total") or 0) > 0
    assert isinstance(stream.source, PushedVideo)
    pid = stream.source.decoder_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: rig.metric("surgseg_decoder_restarts_total", stream="1", cause="ended") == 1)
    restarts = [rig.metric("surgseg_decoder_restarts_total", stream="1", cause=cause) for cause in causes]
    assert restarts == [1, 0, 0]


def test_who_is_turned_away_is_counted(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(max_streams=1, max_requests=1)
    refused = {
        reason: lambda reason=reason: rig.metric("surgseg_refusals_total", reason=reason)
        for reason in ("overloaded", "evicted", "max_streams", "max_requests")
    }
    assert {reason: count() for reason, count in refused.items()} == dict.fromkeys(refused, 0)
    rig.open()
    with pytest.raises(UnavailableError, match="1 streams are open"):
        rig.open()
    assert refused["max_streams"]() == 1
    with rig.pipeline.images.admit(), pytest.raises(UnavailableError), rig.pipeline.images.admit():
        pass
    assert refused["max_requests"]() == 1


def test_cores_are_told_where_admission_reckons_with_them(make_rig: Callable[..., Rig]) -> None:
    assert make_rig(admission=False).metric("surgseg_admission_limit_cores") is None
    rig = make_rig(admission=True)
    limit = rig.metric("surgseg_admission_limit_cores")
    assert limit is not None
    assert limit > 0
    assert rig.metric("surgseg_admission_used_cores") == 0


def test_processor_time_never_falls_when_a_decoder_ends_while_it_is_measured() -> None:
    usages = [Usage(5.0, 1000, 3), Usage(2.0, 500, 2), Usage(6.0, 500, 2)]
    registry = CollectorRegistry()
    registry.register(DecoderGauges(lambda: usages.pop(0)))
    told = []
    while usages:
        samples = {sample.name: sample.value for family in registry.collect() for sample in family.samples}
        told.append((samples["surgseg_decoder_cpu_seconds_total"], samples["surgseg_decoder_processes"]))
    assert told == [(5.0, 2), (5.0, 1), (6.0, 1)]


def test_a_stream_that_is_over_keeps_its_state_and_nothing_else() -> None:
    registry = CollectorRegistry()
    registry.register(StreamGauges(lambda: [StreamSight("3", "failed", 2, None, None)], STATES))
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert {sample.name for sample in samples} == {
        "surgseg_streams",
        "surgseg_viewers",
        "surgseg_stream_state",
    }
    assert registry.get_sample_value("surgseg_stream_state", {"stream": "3", "state": "failed"}) == 1


def test_the_operators_page_says_what_every_metric_means(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(admission=True)
    rig.open()
    rig.telemetry.describe_model(name="small")
    AuditMeter(rig.telemetry.registry)
    samples = {sample.name for family in rig.telemetry.registry.collect() for sample in family.samples}
    told = {re.sub("_(bucket|sum|count)$", "", name) for name in samples if name.startswith("surgseg_")}
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    assert len(told) > 20
    assert told == set(re.findall(r"`(surgseg_\w+)`", page))


def test_metrics_of_a_stream_do_not_grow_with_the_streams_that_were(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()

    def count_series() -> int:
        return sum(len(family.samples) for family in rig.telemetry.registry.collect())

    counts = []
    for _ in range(3):
        stream, _ = rig.open()
        counts.append(count_series())
        stream.close()
        assert stream.join(WAIT_S)
        eventually(lambda: rig.metric("surgseg_streams") == 0)
    assert len(set(counts)) == 1
