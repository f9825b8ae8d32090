"""How the frames of a stream get from their source to the waiting room: what decodes them, and what reads them."""

from __future__ import annotations

from collections.abc import Callable

from service.contract.model_card import ModelCard
from service.pipeline.image_requests import ImageRequests
from service.pipeline.latest_frames import Mode
from service.pipeline.ledger import Ledger
from service.pipeline.live_stream import LiveStream
from service.pipeline.pulled_stream import PulledStream
from service.pipeline.pushed_stream import PushedStream
from service.pipeline.stream_terms import StreamTerms
from service.pipeline.waiting_room import WaitingRoom
from service.processes import Usage
from service.settings import Settings
from service.streams.decoder_process import DecoderPool
from service.streams.decoder_terms import DecoderTerms
from service.streams.reader import Reader
from service.wire import VIDEO_CODECS


class Intake:
    """Fits every frame to the canvas of `card`, which all models of a service share. Any thread may call any method."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        self._input_size = card.input_size
        self._fit_rule = card.fit
        self._max_pixels = settings.max_pixels
        self._deadline_s = settings.deadline_s
        self._settings = settings
        self._decoders = DecoderPool()
        self._decoder_terms = DecoderTerms.read(settings, card.input_size)

    def attach_pushed(self, stream: PushedStream) -> None:
        """Give a stream that a client pushes what decodes its codec."""
        if stream.codec in VIDEO_CODECS:
            stream.attach_video(self._decoders, self._decoder_terms, self._fit_rule)
        else:
            stream.attach_pictures(self._input_size, self._fit_rule, self._max_pixels)

    def attach_pulled(self, stream: PulledStream, *, is_looped: bool) -> None:
        """Give a stream that the service fetches its decoder process."""
        stream.attach(self._decoders, self._decoder_terms, self._fit_rule, is_looped=is_looped)

    def make_reader(self, stream: LiveStream, terms: StreamTerms) -> Reader:
        """What reads a stream's frames and offers them; not started."""
        deadline_s = terms.deadline_s or self._deadline_s
        return Reader(
            stream.source,
            stream_id=stream.id,
            wait_limit_s=deadline_s if terms.mode is Mode.LATEST else None,
            number=stream.ledger.receive,
            offer=stream.offer,
            on_broken=stream.drop_broken,
        )

    def warm(self) -> None:
        """Start the decoders' nursery ahead of the first stream that needs one."""
        self._decoders.start()

    def make_image_requests(
        self, ledger: Ledger, room: WaitingRoom, on_refused: Callable[[], None]
    ) -> ImageRequests:
        """Posted pictures, in as many lanes as a batch has places."""
        settings = self._settings
        return ImageRequests(
            ledger=ledger,
            room=room,
            lanes=settings.batch_sizes[-1],
            max_requests=settings.max_requests,
            on_refused=on_refused,
            max_pixels=settings.max_pixels,
            wait_limit_s=settings.request_deadline_s,
            input_size=self._input_size,
            fit_rule=self._fit_rule,
        )

    def measure_decoders(self) -> Usage:
        """What the decoders that are alive use, the nursery with them."""
        return self._decoders.measure()

    def close(self) -> None:
        """End every decoder."""
        self._decoders.close()
