"""From what the clients recorded to the figures of a measurement. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from service.bench.accounts import find_gaps, measure_fairness
from service.bench.records import PushResult, StreamRecord
from service.bench.resources import Sample
from service.bench.service_metrics import Histogram, ServiceCounts
from service.push import PERCENTILES, summarize

ENCODED = "arrival to encoded"
SEND = "send, at most"
SENT = "arrival to sent, at most"
ROUND_TRIP = "round trip"
_WINDOWS = 60
_SPLITS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_MIB = 2**20


def describe_run(
    result: PushResult, counts: ServiceCounts, samples: Sequence[Sample], seconds: float, warm_up_s: float
) -> dict[str, Any]:
    """All figures of one measurement of `seconds`; frames pushed before `warm_up_s` count, but not in the latencies."""
    records = result.records
    return {
        "seconds": seconds,
        "streams": [describe_stream(record, warm_up_s) for record in records],
        "pushed": sum(record.pushed for record in records),
        "received": counts.received,
        "segmented": counts.segmented,
        "answered": sum(record.answered for record in records),
        "skipped": counts.skipped,
        "dropped": counts.dropped,
        "refused": sum(bool(record.refusal) for record in records),
        "ended_by_the_service": sum(bool(record.ended) for record in records),
        "gaps": find_gaps(records, counts),
        "fps_answered": sum(record.answered for record in records) / max(seconds, 1e-9),
        "fairness": measure_fairness(records),
        "ms": measure_latency(well_behaved(records), counts.send, warm_up_s),
        "p99_of_those_that_stayed_ms": _measure_stayed(records, warm_up_s),
        "p99_by_thirds_ms": [window["p99_ms"] for window in describe_windows(records, seconds, 3)],
        "windows": describe_windows(records, seconds, max(1, min(_WINDOWS, int(seconds)))),
        "client": {
            "cores": result.cpu_s / max(result.elapsed_s, 1e-9),
            "late_ms": summarize([late for record in records for late in record.late_ms]),
        },
        "usage": describe_usage(samples, result.began_at, result.began_at + seconds),
    }


def describe_stream(record: StreamRecord, warm_up_s: float) -> dict[str, Any]:
    """One stream: its counts, its rate, and its own latencies."""
    account = record.account
    return {
        "name": record.name,
        "behaviour": record.spec.behaviour,
        "connections": record.connections,
        "pushed": record.pushed,
        "received": None if account is None else account.received,
        "segmented": None if account is None else account.segmented,
        "dropped": None if account is None else account.dropped,
        "answered": record.answered,
        "skipped": record.skipped,
        "errors": record.errors,
        "refusal": record.refusal,
        "ended": record.ended,
        "ended_at_s": record.ended_at_s,
        "active_s": record.active_s,
        "fps_answered": record.answered / record.active_s if record.active_s else 0.0,
        "ms": {
            ENCODED: summarize(_take(record.encoded_ms, record, warm_up_s)),
            ROUND_TRIP: summarize(_take(record.round_trip_ms, record, warm_up_s)),
        },
    }


def measure_latency(
    records: Sequence[StreamRecord], send: Histogram, warm_up_s: float
) -> dict[str, dict[str, float]]:
    """Percentiles in milliseconds of every stage and of the ways through them, all streams together.

    A mask's header is written before it is sent, so per frame we know arrival to encoded. Arrival to sent lies between
    that and the round trip; `bound_sent` says how close it can be told from the service's histogram of `send`.
    """
    stages: dict[str, list[float]] = {}
    for record in records:
        for stage, values in record.stages_ms.items():
            stages.setdefault(stage, []).extend(_take(values, record, warm_up_s))
    encoded = [value for record in records for value in _take(record.encoded_ms, record, warm_up_s)]
    round_trip = [value for record in records for value in _take(record.round_trip_ms, record, warm_up_s)]
    return {
        **{stage: summarize(values) for stage, values in stages.items()},
        ENCODED: summarize(encoded),
        SEND: {name: 1e3 * send.bound_percentile(rank) for name, rank in PERCENTILES.items()},
        SENT: bound_sent(encoded, round_trip, send),
        ROUND_TRIP: summarize(round_trip),
    }


def bound_sent(
    encoded_ms: Sequence[float], round_trip_ms: Sequence[float], send: Histogram
) -> dict[str, float]:
    """Upper bounds of the percentiles of arrival to sent, from two ways of looking at it; the lowest holds.

    Sent comes before the client has the mask, so no percentile exceeds the round trip's. And a sum exceeds a + b only
    where a part exceeds its own: of 1000 frames at most 8 + 2 lie beyond the parts' p99.2 and p99.8, whose sum so
    bounds p99, as every other split does.
    """
    if not len(encoded_ms):
        return dict.fromkeys(PERCENTILES, math.nan)
    share = min(
        1.0, len(encoded_ms) / max(1, send.count)
    )  # the histogram may hold other streams' frames as well
    bounds = {}
    for name, rank in PERCENTILES.items():
        encoded_beyond = (100 - rank) * np.asarray(_SPLITS)
        parts_ms = [
            encoded + 1e3 * send.bound_percentile(100 - (100 - rank - beyond) * share)
            for beyond, encoded in zip(
                encoded_beyond, np.percentile(encoded_ms, 100 - encoded_beyond), strict=True
            )
        ]
        bounds[name] = float(np.nanmin([*parts_ms, np.percentile(round_trip_ms, rank)]))
    return bounds


def describe_windows(records: Sequence[StreamRecord], seconds: float, count: int) -> list[dict[str, float]]:
    """Arrival to encoded over time, in `count` windows: frames a second of those pushed there, p50 and p99."""
    width_s = seconds / count
    steady = well_behaved(records)
    pushed_at_s = np.asarray([at_s for record in steady for at_s in record.pushed_at_s], dtype=np.float64)
    encoded_ms = np.asarray([value for record in steady for value in record.encoded_ms], dtype=np.float64)
    windows = np.minimum((pushed_at_s / width_s).astype(int), count - 1)
    described = []
    for index in range(count):
        figures = summarize(encoded_ms[windows == index])
        described.append(
            {
                "from_s": index * width_s,
                "fps_answered": float(np.sum(windows == index)) / width_s,
                "p50_ms": figures["p50"],
                "p99_ms": figures["p99"],
            }
        )
    return described


def describe_usage(samples: Sequence[Sample], began_at: float, ended_at: float) -> dict[str, Any]:
    """Processor time and memory of the service with its decoders, and the client's, over time and in all."""
    series = [
        {
            "at_s": later.at - began_at,
            "service_cores": (later.service.cpu_s - earlier.service.cpu_s) / (later.at - earlier.at),
            "client_cores": (later.client.cpu_s - earlier.client.cpu_s) / (later.at - earlier.at),
            "service_mib": later.service.memory_bytes / _MIB,
            "service_processes": later.service.processes,
        }
        for earlier, later in pairwise(samples)
        if began_at <= (earlier.at + later.at) / 2 and later.at <= ended_at
    ]
    memory = [float(entry["service_mib"]) for entry in series]
    cores = [float(entry["service_cores"]) for entry in series]
    return {
        "service_cores": float(np.mean(cores)) if cores else None,
        "service_mib": {"first": memory[0], "last": memory[-1], "most": max(memory)} if memory else None,
        "series": series,
    }


def well_behaved(records: Iterable[StreamRecord]) -> list[StreamRecord]:
    """The streams whose latency counts: those that are not meant to misbehave."""
    return [record for record in records if record.spec.behaviour == "steady"]


def compare_p99(phases: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of each phase's runs the p99 of arrival to encoded in milliseconds, their median, its ratio to the first's."""
    medians = [float(np.median([run["ms"][ENCODED]["p99"] for run in runs])) for runs in phases]
    return [
        {
            "runs_ms": [run["ms"][ENCODED]["p99"] for run in runs],
            "median_ms": median,
            "of_first_phase": median / medians[0],
        }
        for runs, median in zip(phases, medians, strict=True)
    ]


def _measure_stayed(records: Sequence[StreamRecord], warm_up_s: float) -> float:
    """p99 of arrival to encoded, without the streams that the service ended."""
    stayed = [record for record in well_behaved(records) if not record.ended]
    values = [value for record in stayed for value in _take(record.encoded_ms, record, warm_up_s)]
    return summarize(values)["p99"]


def _take(values: Sequence[float], record: StreamRecord, warm_up_s: float) -> list[float]:
    """The values of the answers to frames pushed from `warm_up_s` on."""
    return [value for value, at_s in zip(values, record.pushed_at_s, strict=True) if at_s >= warm_up_s]
