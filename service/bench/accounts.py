"""Whether every frame is accounted for, and whether every stream got its share. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.bench.records import StreamRecord
from service.bench.service_metrics import ServiceCounts

_WHOLE = 0.95  # of the longest time that a stream was pushed: those that ran shorter are not compared


def find_gaps(records: Sequence[StreamRecord], counts: ServiceCounts) -> list[str]:
    """What does not add up, to the frame, in words; nothing where all does.

    `counts` are the service's of this measurement, taken when all streams were closed. A stream that its client left
    open to the end must balance on its own as well; of one that was broken off only the service knows the end.
    """
    gaps = []
    lost = counts.pending
    if lost:
        gaps.append(
            f"the service received {counts.received} = segmented {counts.segmented} + dropped "
            f"{sum(counts.dropped.values())} + {lost} that are nowhere"
        )
    for record in records:
        gaps += [f"stream {record.name}: {gap}" for gap in _find_gaps(record)]
    pushed = sum(record.pushed for record in records)
    known = [record.account for record in records if record.account is not None]
    if len(known) == len(records) and sum(account.received for account in known) != counts.received:
        gaps.append(
            f"the streams' accounts say {sum(account.received for account in known)} received, "
            f"the metrics {counts.received}"
        )
    if counts.received > pushed:
        gaps.append(f"{pushed} frames were pushed, and the service received {counts.received}")
    return gaps


def measure_fairness(records: Iterable[StreamRecord]) -> dict[str, float] | None:
    """The fewest and the most frames answered per stream and second, and their ratio.

    Of the well-behaved streams of one rate that were pushed all the time; None where there are not two.
    """
    steady = [record for record in records if record.spec.behaviour == "steady" and record.active_s > 0]
    longest_s = max((record.active_s for record in steady), default=0.0)
    whole = [record for record in steady if record.active_s >= _WHOLE * longest_s]
    if len(whole) < 2 or len({record.spec.fps for record in whole}) != 1:
        return None
    rates = [record.answered / record.active_s for record in whole]
    least, most = min(rates), max(rates)
    return {
        "streams": len(rates),
        "least_fps": least,
        "most_fps": most,
        "ratio": least / most if most else 0.0,
    }


def _find_gaps(record: StreamRecord) -> list[str]:
    account = record.account
    if account is None or record.ended:
        return []
    gaps = []
    if account.received != record.pushed:
        gaps.append(f"{record.pushed} frames were pushed and {account.received} received")
    # A decoder that swallowed a damaged unit gives up on it only after many more, or when the stream closes.
    if account.pending and record.spec.behaviour == "steady":
        gaps.append(
            f"received {account.received} = segmented {account.segmented} + dropped "
            f"{sum(account.dropped.values())} + {account.pending} that are nowhere"
        )
    if account.segmented != record.answered + record.skipped:
        gaps.append(
            f"{account.segmented} frames were segmented, {record.answered} answered and {record.skipped} skipped"
        )
    return gaps
