"""The service's own metrics before and after a measurement, and what lies between."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.answers import read_problem
from service.credentials import Credentials
from service.errors import UnavailableError

_SETTLE_S, _LOOK_S = 5.0, 0.1


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of durations up to each bound, in seconds; the last bound is infinite."""

    counts: dict[float, float] = field(default_factory=dict)
    sum_s: float = 0.0

    @property
    def count(self) -> int:
        return round(max(self.counts.values(), default=0.0))

    def minus(self, earlier: Histogram) -> Histogram:
        """What came after `earlier`."""
        counts = {bound: count - earlier.counts.get(bound, 0.0) for bound, count in self.counts.items()}
        return Histogram(counts, self.sum_s - earlier.sum_s)

    def bound_percentile(self, rank: float) -> float:
        """Seconds that `rank` percent did not exceed: the upper end of their bucket; NaN where there are none."""
        if not self.count:
            return math.nan
        wanted = self.count * rank / 100
        return next(bound for bound in sorted(self.counts) if self.counts[bound] >= wanted - 1e-9)


@dataclass(frozen=True, slots=True)
class ServiceCounts:
    """Frames of live streams and posted pictures since the service started, all labels together; and stage `send`."""

    received: int = 0
    segmented: int = 0
    skipped: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    send: Histogram = field(default_factory=Histogram)

    @property
    def pending(self) -> int:
        """Frames that are neither segmented nor dropped: none, once all streams are closed."""
        return self.received - self.segmented - sum(self.dropped.values())

    def minus(self, earlier: ServiceCounts) -> ServiceCounts:
        """What came after `earlier`."""
        dropped = {cause: count - earlier.dropped.get(cause, 0) for cause, count in self.dropped.items()}
        return ServiceCounts(
            self.received - earlier.received,
            self.segmented - earlier.segmented,
            self.skipped - earlier.skipped,
            {cause: count for cause, count in dropped.items() if count},
            self.send.minus(earlier.send),
        )


def read_counts(text: str) -> ServiceCounts:
    """Read Prometheus' text format."""
    totals: dict[str, float] = {}
    dropped: dict[str, int] = {}
    send: dict[float, float] = {}
    send_sum_s = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
            if sample.name == "surgseg_frames_dropped_total":
                cause = sample.labels["reason"]
                dropped[cause] = dropped.get(cause, 0) + round(sample.value)
            elif sample.labels.get("stage") == "send" and sample.name == "surgseg_stage_seconds_bucket":
                send[float(sample.labels["le"])] = sample.value
            elif sample.labels.get("stage") == "send" and sample.name == "surgseg_stage_seconds_sum":
                send_sum_s = sample.value
    return ServiceCounts(
        round(totals.get("surgseg_frames_received_total", 0)),
        round(totals.get("surgseg_frames_segmented_total", 0)),
        round(totals.get("surgseg_viewer_skipped_total", 0)),
        dropped,
        Histogram(send, send_sum_s),
    )


def scrape(url: str, credentials: Credentials) -> ServiceCounts:
    """The counts of this instant. Raises UnavailableError, or the error that the service names."""
    try:
        answer = httpx.get(
            f"{url}/metrics", timeout=10.0, headers=credentials.headers(), verify=credentials.verify()
        )
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"{url}/metrics does not answer ({error.__class__.__name__}: {error}).",
            "a running surgseg service",
            "Start it with `surgseg serve`, or check the address.",
        ) from error
    if not answer.is_success:
        raise read_problem(answer)
    return read_counts(answer.text)


def scrape_settled(url: str, credentials: Credentials, before: ServiceCounts) -> ServiceCounts:
    """What came after `before`, when nothing of it is pending any more, or after some seconds at the latest."""
    gives_up_at = time.monotonic() + _SETTLE_S
    while True:
        counts = scrape(url, credentials).minus(before)
        if counts.pending == 0 or time.monotonic() > gives_up_at:
            return counts
        time.sleep(_LOOK_S)
