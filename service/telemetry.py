"""Prometheus metrics.

Labels are bounded: a live stream is labeled by its slot, "1" to the stream limit, and pictures posted one
by one by "images". A slot's counters stay when its stream closes and go on with the next stream in it, so
nothing is lost between two scrapes; only its fps gauge goes away. A viewer is never a label.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from service.frames import DecoderLoss, DropReason, Stage, Timeline
from service.gauges import CoreGauges, DecoderGauges, StreamGauges, StreamSight
from service.processes import Usage

IMAGES_LABEL = "images"
SwapOutcome = Literal["swapped", "rolled_back", "refused"]
FPS_WINDOW_S = 2.0
# A frame at 60 fps lasts 16.7 ms and at 25 fps 40 ms, so the buckets are close together around those. One ends at the
# promised 50 ms, so that how many frames kept the promise is exact.
BUCKETS_S = (
    *(0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.0125, 0.0167),
    *(0.02, 0.025, 0.0333, 0.04, 0.05, 0.06, 0.1, 0.2, 0.5, 1.0),
)  # fmt: skip

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, which nobody looks at


class Refusal(StrEnum):
    """Why somebody was turned away who might be served at another time, or by another machine."""

    OVERLOADED = "overloaded"
    """One more stream would have made the others late."""
    EVICTED = "evicted"
    """A stream was closed again in its first seconds because it made the others late."""
    MAX_STREAMS = "max_streams"
    """As many streams were open as the settings allow."""
    MAX_REQUESTS = "max_requests"
    """As many posted pictures were worked on as the settings allow."""


class Telemetry:
    """The metrics of one service, in a registry of their own. Every method may be called from any thread."""

    def __init__(self, batch_sizes: tuple[int, ...]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._received = self._count("frames_received", "Frames that arrived.")
        self._segmented = self._count("frames_segmented", "Frames that got a mask.")
        self._dropped = self._count("frames_dropped", "Frames that got no mask, by cause.", "reason")
        self._skipped = self._count("viewer_skipped", "Masks that a slow viewer did not get.")
        self._fps = self._gauge("stream_fps", f"Masks per second over the last {FPS_WINDOW_S:g} s.", "stream")
        self._restarts = self._count(
            "decoder_restarts", "Decoders lost and started again, by cause.", "cause"
        )
        refusals = Counter(
            "surgseg_refusals", "Streams and pictures turned away.", ["reason"], registry=self.registry
        )
        self._refusals = {reason: refusals.labels(reason) for reason in Refusal}
        self._ready = self._gauge("ready", "1 while a recent inference has succeeded.")
        self._stage_s = self._time("stage_seconds", "Time of one frame in each stage.", "stage")
        self._frame_s = self._time("frame_seconds", "From a frame's arrival to its encoded mask.", "stream")
        self._batch_size = Histogram(
            "surgseg_batch_size", "Frames per inference.", buckets=batch_sizes, registry=self.registry
        )
        self._refused = Counter(
            "surgseg_requests_refused",
            "Requests and WebSockets turned away at the door: no token, a wrong scope or origin, a limit.",
            ["status"],
            registry=self.registry,
        )
        for status in ("401", "403", "429"):
            self._refused.labels(status)
        self._stale_tokens = self._gauge("tokens_stale", "1 while the file of tokens cannot be read.")
        self._model = Info("surgseg_model", "The model that is served.", registry=self.registry)
        self._swaps = Counter(
            "surgseg_model_swaps",
            "Changes of the model while it was served, by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in get_args(SwapOutcome):
            self._swaps.labels(outcome)
        self._stages = {stage: self._stage_s.labels(stage) for stage in Stage}

    def describe_model(self, **labels: str) -> None:
        """Set the labels of `surgseg_model_info`; those before vanish."""
        self._model.info(labels)

    def count_swap(self, outcome: SwapOutcome) -> None:
        """Count a change of the model, done or refused."""
        self._swaps.labels(outcome).inc()

    def watch_readiness(self, is_ready: Callable[[], bool]) -> None:
        """Ask `is_ready` at every scrape for `surgseg_ready`."""
        self._ready.set_function(is_ready)

    def watch_streams(self, look: Callable[[], Iterable[StreamSight]], states: Sequence[str]) -> None:
        """Ask `look` at every scrape for what the open streams do; once."""
        self.registry.register(StreamGauges(look, states))

    def watch_decoders(self, look: Callable[[], Usage]) -> None:
        """Ask `look` at every scrape for what the decoders use; once."""
        self.registry.register(DecoderGauges(look))

    def watch_admission(self, look: Callable[[], tuple[float, float]]) -> None:
        """Ask `look` at every scrape for the cores in use and the cores that may be; once."""
        self.registry.register(CoreGauges(look))

    def count_refusal(self, reason: Refusal) -> None:
        """Somebody was turned away."""
        self._refusals[reason].inc()

    def count_refused(self, status: int) -> None:
        """Count a request that was turned away before anything else saw it, by its HTTP status."""
        self._refused.labels(str(status)).inc()

    def note_stale_tokens(self, is_stale: bool) -> None:
        """Whether the service goes by tokens that its file does not hold as they are."""
        self._stale_tokens.set(is_stale)

    def observe_batch(self, size: int) -> None:
        """Count one inference over `size` frames (padding left out)."""
        self._batch_size.observe(size)

    def observe_stage(self, stage: Stage, seconds: float) -> None:
        """Add one duration to `surgseg_stage_seconds`."""
        self._stages[stage].observe(seconds)

    def meter_stream(self, label: str) -> StreamMeter:
        """The counters of one slot, all present from the start so that the first increase is seen as one."""
        has_decoder = label != IMAGES_LABEL
        return StreamMeter(
            label=label,
            received=self._received.labels(label),
            segmented=self._segmented.labels(label),
            dropped={reason: self._dropped.labels(label, reason) for reason in DropReason},
            skipped=self._skipped.labels(label),
            restarts={loss: self._restarts.labels(label, loss) for loss in DecoderLoss if has_decoder},
            frame_s=self._frame_s.labels(label),
            fps=self._fps,
            telemetry=self,
        )

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the text format that suits an `Accept` header, and its content type.

        It looks at every decoder process, a millisecond or so each: not for the event loop.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _count(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"surgseg_{name}", text, ["stream", *labels], registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"surgseg_{name}", text, labels, registry=self.registry)

    def _time(self, name: str, text: str, label: str) -> Histogram:
        return Histogram(f"surgseg_{name}", text, [label], buckets=BUCKETS_S, registry=self.registry)


class StreamMeter:
    """Counts one stream. Every method may be called from any thread."""

    def __init__(
        self,
        *,
        label: str,
        received: Counter,
        segmented: Counter,
        dropped: dict[DropReason, Counter],
        skipped: Counter,
        restarts: dict[DecoderLoss, Counter],
        frame_s: Histogram,
        fps: Gauge,
        telemetry: Telemetry,
    ) -> None:
        self._label = label
        self._received = received
        self._segmented = segmented
        self._dropped = dropped
        self._skipped = skipped
        self._restarts = restarts
        self._frame_s = frame_s
        self._fps = fps
        self._telemetry = telemetry
        self._lock = threading.Lock()
        self._segmented_at: deque[float] = deque()
        self._last_mask_at = time.monotonic()
        fps.labels(label).set_function(self.measure_fps)

    def count_received(self) -> None:
        self._received.inc()

    def count_segmented(self, timeline: Timeline) -> None:
        """Count a mask and the time its frame took."""
        self._segmented.inc()
        self._frame_s.observe(timeline.total_s)
        for stage, seconds in timeline.durations_s().items():
            self._telemetry.observe_stage(stage, seconds)
        with self._lock:
            self._segmented_at.append(timeline.ended_at)
            self._last_mask_at = timeline.ended_at
            self._forget(timeline.ended_at)

    def count_dropped(self, reason: DropReason) -> None:
        self._dropped[reason].inc()

    def count_skipped(self) -> None:
        self._skipped.inc()

    def count_restart(self, loss: DecoderLoss) -> None:
        self._restarts[loss].inc()

    def measure_mask_age(self) -> float:
        """Seconds since the last mask, or since the meter began."""
        return time.monotonic() - self._last_mask_at

    def measure_fps(self) -> float:
        """Masks per second over the last `FPS_WINDOW_S`; falls to 0 when the stream stalls."""
        with self._lock:
            self._forget(time.monotonic())
            return len(self._segmented_at) / FPS_WINDOW_S

    def close(self) -> None:
        """Take the fps gauge away; the counters stay."""
        self._fps.remove(self._label)

    def _forget(self, now: float) -> None:
        while self._segmented_at and self._segmented_at[0] <= now - FPS_WINDOW_S:
            self._segmented_at.popleft()
