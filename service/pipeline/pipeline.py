"""The real-time core as one object: start, open and close streams, segment pictures, stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from service.contract.bundle import Bundle
from service.errors import NotFoundError, OverloadedError, UnavailableError
from service.frames import SegmentedFrame, Stage
from service.pipeline.engine import BackendInfo, EngineParts
from service.pipeline.gatekeeper import Gatekeeper
from service.pipeline.image_requests import ImageRequests
from service.pipeline.intake import Intake
from service.pipeline.journal import SILENT, Journal
from service.pipeline.latest_frames import Drop, Mode
from service.pipeline.ledger import Ledger
from service.pipeline.live_stream import LiveStream
from service.pipeline.model_terms import ModelTerms
from service.pipeline.processor_costs import Newcomer
from service.pipeline.publisher import Audience, Publisher
from service.pipeline.pulled_stream import PulledStream
from service.pipeline.pushed_stream import PushCallbacks, PushedStream
from service.pipeline.stream_places import Place, StreamPlaces
from service.pipeline.stream_terms import StreamTerms
from service.pipeline.succession import OpenBackend, Succession, SwapRules
from service.pipeline.waiting_room import WaitingRoom
from service.processors import available_cores
from service.settings import Settings
from service.streams.calibration import Calibration
from service.streams.decoded_video import StreamState
from service.streams.pull_targets import PullTarget
from service.telemetry import IMAGES_LABEL, Refusal, Telemetry

_STARTING = "The model is being loaded."
_ENDING = "The service is shutting down."
_FAILED = "The inference engine has failed."
_ASSUMED_CODEC = "h264"  # what a pulled stream is taken for until it has been opened


class Pipeline:
    """Joins waiting room, engine and publisher, and knows the open streams. Any thread may call any method.

    `on_fatal` is told, once, of the error that killed the engine or the publisher; the process must then end.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        telemetry: Telemetry,
        on_fatal: Callable[[BaseException], None],
        journal: Journal = SILENT,
        open_backend: OpenBackend = ModelTerms.open,
    ) -> None:
        self.journal = journal
        self._settings = settings
        self._telemetry = telemetry
        self._on_fatal = on_fatal
        self._room = WaitingRoom(time.monotonic)
        self._publisher = Publisher(self._find, self._tell, self._fail)
        self.models = self._make_succession(bundle, open_backend)
        self._gatekeeper = Gatekeeper(available_cores(), settings.admission, self._evict, self._fail)
        self._calibration = Calibration(bundle.card.input_size, bundle.card.fit)
        self._intake = Intake(bundle.card, settings)
        self._published = bundle
        self._lock = threading.Lock()
        self._streams: dict[str, LiveStream] = {}
        self._places = StreamPlaces(
            settings.max_streams, telemetry, self._gatekeeper, self._forget, self._make_room, journal
        )
        self._refusal: str | None = _STARTING
        self._failure: BaseException | None = None
        self.images = self._make_image_requests()
        self._show(telemetry)

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves now."""
        return self.models.current.bundle

    def start(self) -> Future[BackendInfo]:
        """Begin to open and prove the backend; the result is there when the first frame may come.

        It may take minutes, and raises BundleError or BackendError.
        """
        self._publisher.start()
        opened = self.models.start()
        opened.add_done_callback(self._open)
        return opened

    def is_ready(self) -> bool:
        """Whether a frame would be served now: started, not draining, an inference succeeded lately."""
        age_s = time.monotonic() - self.models.last_success_at
        return self._why_closed is None and self._failure is None and age_s <= self._settings.ready_window_s

    def check_open(self) -> None:
        """Raise UnavailableError unless new work is taken."""
        if (reason := self._why_closed) is not None:
            raise UnavailableError(reason, "a service that is ready", "Try again in a moment.")

    @property
    def _why_closed(self) -> str | None:
        return self._refusal or self.journal.refusal

    def streams(self) -> tuple[LiveStream, ...]:
        """The open streams, the oldest first."""
        with self._lock:
            return tuple(self._streams.values())

    def find_stream(self, stream_id: str) -> LiveStream:
        """An open stream. Raises NotFoundError."""
        stream = self._streams.get(stream_id)
        if stream is None:
            raise NotFoundError(
                f"There is no stream {stream_id!r}.", "the id of an open stream", "See GET /v1/streams."
            )
        return stream

    def open_pushed(self, codec: str, terms: StreamTerms, callbacks: PushCallbacks) -> PushedStream:
        """Open a stream for a client that pushes frames; see PushedStream.

        Raises UnavailableError, or OverloadedError where the others would suffer.
        """
        place = self._take_place(terms.describe(codec))
        stream = PushedStream(
            stream_id=place.stream_id,
            label=place.label,
            codec=codec,
            mode=terms.mode,
            ledger=place.ledger,
            room=self._room,
            on_served=self._note_served,
            callbacks=callbacks,
        )
        self._intake.attach_pushed(stream)
        self._begin(stream, terms)
        return stream

    def open_pulled(
        self, target: PullTarget, terms: StreamTerms, *, name: str = "", is_looped: bool = False
    ) -> PulledStream:
        """Open a stream that the service fetches from `target`; see PulledStream.

        Raises UnavailableError, or OverloadedError where the others would suffer.
        """
        place = self._take_place(terms.describe(_ASSUMED_CODEC))
        stream = PulledStream(
            stream_id=place.stream_id,
            label=place.label,
            name=name,
            mode=terms.mode,
            target=target,
            max_viewers=self._settings.max_viewers,
            ledger=place.ledger,
            room=self._room,
            on_served=self._note_served,
        )
        self._intake.attach_pulled(stream, is_looped=is_looped)
        self._begin(stream, terms)
        return stream

    def warm_decoders(self) -> None:
        """Start the decoders' nursery ahead of the first stream that needs one."""
        self._intake.warm()

    def learn_costs(self) -> None:
        """Measure what pictures cost on this machine, for admission; takes a second or two."""
        for cost in self._calibration.measure() if self._settings.admission else ():
            self._gatekeeper.learn(cost.codec, cost.pixels, cost.seconds)

    def refuse_new(self) -> None:
        """Take no new stream and no new picture any more; what is open goes on."""
        self._refusal = _ENDING
        self.models.refuse()

    def drain_pulled(self) -> None:
        """Fetch no more frames; each pulled stream closes when it is answered and its viewers have left."""
        for stream in self.streams():
            if isinstance(stream, PulledStream):
                stream.drain()

    def stop(self, timeout_s: float) -> bool:
        """Close every stream, then engine and publisher; False when a thread did not end in time."""
        self.refuse_new()
        for stream in self.streams():
            stream.close()
        self.images.close()
        self._gatekeeper.stop(timeout_s)
        self._calibration.stop()
        self._intake.close()
        self._room.close()
        return self.models.stop(timeout_s) and self._publisher.stop(timeout_s)

    def _show(self, telemetry: Telemetry) -> None:
        telemetry.watch_readiness(self.is_ready)
        telemetry.watch_streams(lambda: [stream.look() for stream in self.streams()], tuple(StreamState))
        telemetry.watch_decoders(self._intake.measure_decoders)
        if self._settings.admission:
            telemetry.watch_admission(self._gatekeeper.measure_cores)

    def _open(self, opened: Future[BackendInfo]) -> None:
        if opened.exception() is None and self._refusal == _STARTING:
            self._gatekeeper.start()
            self._refusal = None

    def _make_succession(self, bundle: Bundle, open_backend: OpenBackend) -> Succession:
        return Succession(
            bundle,
            ModelTerms.read(self._settings),
            SwapRules.read(self._settings),
            EngineParts(
                room=self._room,
                publish=self._publisher.publish,
                drop=self._drop,
                telemetry=self._telemetry,
                probe_interval_s=self._settings.probe_interval_s,
                on_failure=self._fail,
            ),
            open_backend=open_backend,
            announce=self._publisher.announce,
            on_changed=self._note_model,
        )

    def _note_model(self, bundle: Bundle, backend: BackendInfo) -> None:
        self._gatekeeper.change_model(backend.frame_cost_s)
        self.journal.describe_model(bundle, backend)

    def _tell(self, bundle: Bundle) -> None:
        """Every mask published from now on is of this bundle's model; called in the publisher's thread."""
        with self._lock:
            self._published = bundle
            streams = tuple(self._streams.values())
        for stream in streams:
            stream.announce(bundle)

    def _make_image_requests(self) -> ImageRequests:
        journal = self.journal.follow(IMAGES_LABEL)
        return self._intake.make_image_requests(
            Ledger(self._telemetry.meter_stream(IMAGES_LABEL), lambda: None, journal=journal),
            self._room,
            on_refused=lambda: self._telemetry.count_refusal(Refusal.MAX_REQUESTS),
        )

    def note_sent(self, stream: LiveStream, seconds: float) -> None:
        """A viewer of a live stream has been sent an answer, so long after it was encoded."""
        self._room.measure(Stage.SEND, seconds, stream.id)

    def _note_served(self, segmented: SegmentedFrame) -> None:
        self._gatekeeper.serve(segmented)
        for stage, seconds in segmented.frame.timeline.durations_s().items():
            self._room.measure(stage, seconds, segmented.frame.stream_id)

    def _begin(self, stream: LiveStream, terms: StreamTerms) -> None:
        depth = self._settings.every_depth if terms.mode is Mode.EVERY else 1
        self._room.add_stream(stream.id, terms.mode, depth, terms.priority)
        with self._lock:
            stream.bundle = self._published
            self._streams[stream.id] = stream
        self.journal.begin(stream)
        stream.start(self._intake.make_reader(stream, terms).run)

    def _find(self, stream_id: str) -> Audience:
        return self.images if stream_id in self.images.lane_ids else self._streams[stream_id]

    def _drop(self, drop: Drop) -> None:
        self._find(drop.frame.stream_id).drop(drop)

    def _take_place(self, newcomer: Newcomer) -> Place:
        self.check_open()
        return self._places.take(newcomer)

    def _make_room(self) -> None:
        """A stream that has ended is listed until somebody needs its place."""
        for stream in self.streams():
            if isinstance(stream, PulledStream) and stream.is_over:
                stream.close()
                return

    def _evict(self, stream_id: str, error: OverloadedError) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._telemetry.count_refusal(Refusal.EVICTED)
            stream.fail(error)

    def _forget(self, stream_id: str) -> None:
        with self._lock:
            self._streams.pop(stream_id, None)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
        self._refusal = _FAILED
        self._on_fatal(error)
        for stream in self.streams():
            stream.fail(error)
