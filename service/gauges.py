"""Metrics that are looked up when Prometheus asks for them: the open streams, the decoders, the cores given out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.processes import Usage


@dataclass(frozen=True, slots=True)
class StreamSight:
    """One open stream at one instant; `label` is that of its slot.

    `mask_age_s` is the time since its last mask, or since it was opened, and None where none is due: of a stream that
    is over, or waits for its viewers. `promise_s` is None where no latency is promised.
    """

    label: str
    state: str
    viewers: int
    mask_age_s: float | None
    promise_s: float | None


class StreamGauges(Collector):
    """`look` gives the open streams and is called in the thread that renders; `states` is all that one can be in."""

    def __init__(self, look: Callable[[], Iterable[StreamSight]], states: Sequence[str]) -> None:
        self._look = look
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        sights = tuple(self._look())
        yield _gauge("streams", "Streams open now.", len(sights))
        yield _gauge("viewers", "Viewers of all streams now.", sum(sight.viewers for sight in sights))
        state = _family("stream_state", "1 for the state that the stream is in.", "stream", "state")
        age_s = _family(
            "stream_mask_age_seconds", "Since the last mask of a stream that owes masks.", "stream"
        )
        promise_s = _family(
            "stream_promise_seconds", "What 99 % of the stream's frames may take, arrival to mask.", "stream"
        )
        for sight in sights:
            for name in self._states:
                state.add_metric([sight.label, name], float(name == sight.state))
            if sight.mask_age_s is not None:
                age_s.add_metric([sight.label], sight.mask_age_s)
            if sight.promise_s is not None:
                promise_s.add_metric([sight.label], sight.promise_s)
        yield from (state, age_s, promise_s)


class DecoderGauges(Collector):
    """`look` measures the nursery and its children as they are now, and is called in the thread that renders."""

    def __init__(self, look: Callable[[], Usage]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._cpu_s = 0.0

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        usage = self._look()
        with self._lock:
            # A child that ends while we look is in neither its own figures nor its parent's; a counter must not fall.
            self._cpu_s = cpu_s = max(self._cpu_s, usage.cpu_s)
        yield _gauge("decoder_processes", "Decoder processes alive now.", max(0, usage.processes - 1))
        yield _gauge(
            "decoder_memory_bytes",
            "Memory of all decoders and of what starts them (PSS).",
            usage.memory_bytes,
        )
        yield CounterMetricFamily(
            "surgseg_decoder_cpu_seconds", "Processor time of all decoders since the first.", value=cpu_s
        )


class CoreGauges(Collector):
    """`look` gives the cores that streams use or have reserved, and those that they may use."""

    def __init__(self, look: Callable[[], tuple[float, float]]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        used_cores, limit_cores = self._look()
        yield _gauge("admission_used_cores", "Cores that the open streams need or have reserved.", used_cores)
        yield _gauge("admission_limit_cores", "Cores that streams may use together now.", limit_cores)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"surgseg_{name}", text, value=value)


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"surgseg_{name}", text, labels=labels)
