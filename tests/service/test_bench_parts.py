"""The parts of `surgseg bench` that only calculate: arrivals, percentiles, accounts, plots, scenarios."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client import Histogram as Metric

from service.bench.accounts import find_gaps, measure_fairness
from service.bench.arrivals import plan_arrivals
from service.bench.figures import (
    ENCODED,
    ROUND_TRIP,
    SENT,
    bound_sent,
    compare_p99,
    describe_run,
    describe_usage,
    describe_windows,
    measure_latency,
)
from service.bench.memory_runs import measure_rate
from service.bench.plot import choose_top, plot_runs
from service.bench.pusher import damage
from service.bench.records import Account, PushResult, StreamRecord
from service.bench.resources import Sample, find_listener
from service.bench.scenarios import SCENARIOS, StreamSpec, adapt_scenario
from service.bench.service_metrics import Histogram, ServiceCounts, read_counts
from service.errors import InvalidRequestError
from service.processes import Usage, measure_tree

SPEC = StreamSpec("jpeg", 640, 360, 25)


def make_record(answered: int = 90, dropped: int = 10, **changes: Any) -> StreamRecord:
    """A stream of 100 frames in 4 s that balances; the latency of answer k is k ms, its round trip 2 ms more."""
    record = StreamRecord(
        "1",
        SPEC,
        pushed=answered + dropped,
        answered=answered,
        stopped_at_s=4.0,
        account=Account(answered + dropped, answered, {"superseded": dropped}),
        pushed_at_s=[4.0 * index / answered for index in range(answered)],
        encoded_ms=[float(index) for index in range(answered)],
        round_trip_ms=[index + 2.0 for index in range(answered)],
        stages_ms={"infer": [1.0] * answered},
    )
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def counts_of(*records: StreamRecord) -> ServiceCounts:
    accounts = [record.account for record in records if record.account is not None]
    return ServiceCounts(
        sum(account.received for account in accounts),
        sum(account.segmented for account in accounts),
        0,
        {"superseded": sum(account.dropped["superseded"] for account in accounts)},
    )


def test_constant_arrivals_are_a_camera_s() -> None:
    assert list(plan_arrivals("constant", 25, 0.2, 1)) == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert list(plan_arrivals("constant", 25, 0.001, 1)) == [0]


def test_poisson_arrivals_keep_the_rate_and_the_seed_and_come_in_bursts() -> None:
    due = list(plan_arrivals("poisson", 50, 400, 3))
    assert due == list(plan_arrivals("poisson", 50, 400, 3))
    assert due != list(plan_arrivals("poisson", 50, 400, 4))
    assert due[0] == 0
    assert due[-1] < 400
    assert len(due) == pytest.approx(50 * 400, rel=0.03)
    gaps = np.diff(due)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "the gaps of a Poisson process are exponential"


def test_accounts_that_balance_have_no_gaps() -> None:
    records = [make_record(), make_record(80, 20)]
    assert find_gaps(records, counts_of(*records)) == []


def test_one_missing_frame_is_found_wherever_it_is_missing() -> None:
    record = make_record()
    counts = counts_of(record)
    missing = {
        "in the service's metrics": find_gaps(
            [record], ServiceCounts(counts.received, counts.segmented - 1, 0, counts.dropped)
        ),
        "between client and service": find_gaps([make_record(pushed=101)], counts),
        "in the stream's account": find_gaps(
            [make_record(account=Account(100, 90, {"superseded": 9}))], counts
        ),
        "on the way to the viewer": find_gaps([make_record(answered=90, pushed=100, skipped=1)], counts),
        "between account and metrics": find_gaps([record], ServiceCounts(99, 90, 0, {"superseded": 9})),
        "out of nowhere": find_gaps([make_record(account=None, pushed=99)], counts),
    }
    assert [where for where, gaps in missing.items() if not gaps] == []


def test_a_stream_that_the_service_ended_need_not_balance_on_its_own() -> None:
    record = make_record(pushed=103, ended="too slow", account=None)
    assert find_gaps([record], ServiceCounts(100, 90, 0, {"closed": 10})) == []


def test_fairness_compares_streams_that_ran_equally_long() -> None:
    records = [make_record(100, 0), make_record(90, 10), make_record(10, 0, stopped_at_s=0.5)]
    fairness = measure_fairness(records)
    assert fairness == pytest.approx({"streams": 2, "least_fps": 22.5, "most_fps": 25, "ratio": 0.9})
    assert measure_fairness(records[:1]) is None
    other_rate = make_record(spec=StreamSpec("jpeg", 640, 360, 30))
    assert measure_fairness([*records, other_rate]) is None


def test_what_the_service_counted_is_read_from_its_metrics() -> None:
    registry = CollectorRegistry()
    received = Counter("surgseg_frames_received", "x", ["stream"], registry=registry)
    dropped = Counter("surgseg_frames_dropped", "x", ["stream", "reason"], registry=registry)
    stages = Metric("surgseg_stage_seconds", "x", ["stage"], buckets=(0.001, 0.01), registry=registry)
    before = read_counts(generate_latest(registry).decode())
    for stream in ("1", "2"):
        received.labels(stream).inc(5)
        dropped.labels(stream, "superseded").inc(2)
    stages.labels("infer").observe(5)
    for seconds in (0.0005, 0.0005, 0.005, 0.5):
        stages.labels("send").observe(seconds)
    counts = read_counts(generate_latest(registry).decode()).minus(before)
    assert (counts.received, counts.dropped, counts.pending) == (10, {"superseded": 4}, 6)
    assert (counts.send.count, counts.send.sum_s) == (4, pytest.approx(0.506))
    bounds = [counts.send.bound_percentile(rank) for rank in (50, 51, 75, 76)]
    assert bounds == [0.001, 0.01, 0.01, math.inf]
    assert math.isnan(Histogram().bound_percentile(50))


def test_arrival_to_sent_is_bounded_from_above_and_never_below_what_it_contains() -> None:
    source = np.random.default_rng(5)
    encoded_ms = source.gamma(4, 5, 5000)
    send_ms = source.gamma(1, 0.8, 5000)
    network_ms = source.gamma(2, 8, 5000)
    bounds_s = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, math.inf)
    send = Histogram({bound: float(np.sum(send_ms <= 1e3 * bound)) for bound in bounds_s})
    bounds = bound_sent(list(encoded_ms), list(encoded_ms + send_ms + network_ms), send)
    for name, rank in {"p50": 50, "p95": 95, "p99": 99, "p99.9": 99.9}.items():
        truth = np.percentile(encoded_ms + send_ms, rank)
        assert truth <= bounds[name] <= np.percentile(encoded_ms + send_ms + network_ms, rank)
    round_trip_p99 = np.percentile(encoded_ms + send_ms + network_ms, 99)
    assert bounds["p99"] < 0.9 * round_trip_p99, "the histogram tells more than the round trip alone"
    assert all(math.isnan(value) for value in bound_sent([], [], send).values())


def test_latencies_leave_the_warm_up_out_and_windows_follow_the_time() -> None:
    record = make_record(100, 0)
    figures = measure_latency([record], Histogram(), 2.0)
    assert figures[ENCODED]["p50"] == pytest.approx(74.5)
    assert figures[ROUND_TRIP]["max"] == 101
    assert figures[SENT]["max"] == figures[ROUND_TRIP]["max"], "without a histogram the round trip bounds"
    windows = describe_windows([record], 4.0, 4)
    assert [window["fps_answered"] for window in windows] == [25, 25, 25, 25]
    assert [window["p50_ms"] for window in windows] == [12, 37, 62, 87]


def test_a_run_s_figures_name_those_that_stayed_and_what_does_not_add_up() -> None:
    evicted = make_record(100, 0, ended="The streams need more", encoded_ms=[500.0] * 100, account=None)
    stayed = make_record(100, 0)
    counts = ServiceCounts(200, 199, 0, {})
    result = PushResult([stayed, evicted], began_at=0.0, elapsed_s=4.0, cpu_s=0.2)
    run = describe_run(result, counts, [], 4.0, 0.0)
    assert run["p99_of_those_that_stayed_ms"] == pytest.approx(98.01)
    assert run["ms"][ENCODED]["p99"] == 500
    assert (run["ended_by_the_service"], run["refused"], run["client"]["cores"]) == (1, 0, 0.05)
    assert len(run["gaps"]) == 1
    assert "1 that are nowhere" in run["gaps"][0]


def test_phases_are_compared_by_the_median_of_their_rounds() -> None:
    phases = [
        [{"ms": {ENCODED: {"p99": value}}} for value in values] for values in ((10, 30, 20), (24, 22, 90))
    ]
    assert [entry["of_first_phase"] for entry in compare_p99(phases)] == pytest.approx([1, 1.2])


def test_usage_is_taken_between_beginning_and_end() -> None:
    samples = [
        Sample(float(at), Usage(0.5 * at, 2**20 * (10 + at), 3), Usage(0.1 * at, 0, 1)) for at in range(7)
    ]
    usage = describe_usage(samples, 2.0, 5.0)
    assert usage["service_cores"] == pytest.approx(0.5)
    assert usage["service_mib"] == {"first": 13, "last": 15, "most": 15}
    assert [entry["at_s"] for entry in usage["series"]] == [1, 2, 3]
    assert describe_usage([], 0.0, 1.0)["service_cores"] is None


def test_usage_of_a_process_counts_its_children() -> None:
    code = (
        "import subprocess, sys; print('up', flush=True); subprocess.run([sys.executable, '-c', 'input()'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        usage = measure_tree(process.pid)
        for _ in range(200):
            if usage.processes == 2:
                break
            usage = measure_tree(process.pid)
        process.communicate(b"\n")
    assert usage.processes == 2
    assert usage.memory_bytes > 2**20
    assert measure_tree(None) == Usage(0.0, 0, 0)


def test_a_listener_is_found_by_its_port(server: Any) -> None:
    assert find_listener(int(server.url.rpartition(":")[2])) == server.process.pid
    assert find_listener(9) is None


def test_damage_is_seeded_leaves_half_alone_and_keeps_the_start() -> None:
    payload = bytes(range(256)) * 4
    damaged = [damage(payload, random.Random(seed)) for seed in range(200)]
    assert damaged == [damage(payload, random.Random(seed)) for seed in range(200)]
    assert 60 < sum(entry == payload for entry in damaged) < 140
    assert {entry[:5] for entry in damaged} == {payload[:5]}
    assert min(map(len, damaged)) >= 8


def test_a_rate_counts_what_came_in_time() -> None:
    assert measure_rate([0.9, 1.0, 1.5, 2.9, 3.0], 1.0, 3.0) == 1.5


@pytest.mark.parametrize(("highest", "top"), [(0, 1), (0.9, 1), (1, 1), (1.01, 2), (34, 50), (501, 1000)])
def test_an_axis_ends_at_a_round_number(highest: float, top: float) -> None:
    assert choose_top(highest) == top


def test_a_plot_is_well_formed_and_shows_every_phase() -> None:
    run = {
        "windows": [{"from_s": 0, "fps_answered": 25, "p50_ms": 5, "p99_ms": math.nan}],
        "usage": {"series": [{"at_s": 1, "service_cores": 1, "client_cores": 0.1, "service_mib": 200}]},
    }
    phases = [{"name": "a < b", "runs": [run, run]}, {"name": "disturbed", "runs": [run]}]
    root = ElementTree.fromstring(plot_runs("one & two", phases))
    texts = [element.text for element in root.iter() if element.text]
    assert {"one & two", "a < b 1 p99", "a < b 2", "disturbed service"} <= set(texts)
    assert "nan" not in " ".join(str(element.attrib) for element in root.iter())


def test_scenarios_are_what_their_names_say() -> None:
    assert set(SCENARIOS) >= {
        "one-1080p60-h264", "one-720p25-jpeg", "four-720p25", "overload-8x1080p30-h264", "memory", "post-720p",
        "disturbed",
    }  # fmt: skip
    assert SCENARIOS["overload-8x1080p30-h264"].most_streams == 8
    behaviours = [spec.behaviour for spec in SCENARIOS["disturbed"].phases[2].streams]
    assert sorted(behaviours) == ["corrupt", "reconnecting", "stalled", "steady", "steady"]


def test_options_change_the_streams_of_a_scenario() -> None:
    adapted = adapt_scenario(SCENARIOS["four-720p25"], streams=2, codec="h264", fps=10, size=(320, 180))
    assert adapted.phases[0].streams == (StreamSpec("h264", 320, 180, 10),) * 2
    disturbed = adapt_scenario(SCENARIOS["disturbed"], size=(320, 180))
    assert {spec.behaviour for spec in disturbed.phases[2].streams} > {"steady"}
    with pytest.raises(InvalidRequestError, match="--streams"):
        adapt_scenario(SCENARIOS["disturbed"], streams=3)


def test_this_process_is_in_its_own_tree() -> None:
    assert measure_tree(os.getpid()).cpu_s > 0
