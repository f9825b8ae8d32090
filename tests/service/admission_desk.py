"""An Admission with a time of its own, and streams whose rate, cost and latency a test sets."""

from __future__ import annotations

from service.pipeline.admission import Admission, Admitted, Eviction, Refused
from service.pipeline.processor_costs import Newcomer

HD = 1920 * 1080
REVIEW_S = 0.5


class Desk:
    """An Admission with its time; every stream in `sending` sends at its rate and is served in time."""

    def __init__(self, cores: int = 2, **options: float) -> None:
        self.admission = Admission(cores, **options)
        self.now = 100.0
        self.sending: dict[str, tuple[float, float]] = {}
        self.latency_s: dict[str, float] = {}
        self.pixels: dict[str, int] = {}
        self.evictions: list[Eviction] = []

    def admit(self, stream_id: str, newcomer: Newcomer | None = None) -> Admitted | Refused:
        return self.admission.admit(stream_id, newcomer or Newcomer("h264"), self.now)

    def send(self, stream_id: str, fps: float, cores: float) -> None:
        """From now on the stream sends `fps` frames a second, and they keep `cores` busy."""
        self.sending[stream_id] = (fps, cores)

    def run(self, seconds: float) -> list[Eviction]:
        """Let time pass; gives the evictions of that time."""
        evicted: list[Eviction] = []
        for _ in range(round(seconds / REVIEW_S)):
            for stream_id, (fps, cores) in self.sending.items():
                self.play(stream_id, fps, cores)
            self.now += REVIEW_S
            evicted += self.admission.review(self.now)
            for eviction in evicted:
                self.sending.pop(eviction.stream_id, None)
        return evicted

    def play(self, stream_id: str, fps: float, cores: float) -> None:
        frames = round(fps * REVIEW_S)
        for index in range(frames):
            at = self.now + index * REVIEW_S / frames
            self.admission.receive(stream_id, at)
            self.admission.serve(
                stream_id,
                pixels=self.pixels.get(stream_id, HD),
                picture_s=0.6 * cores / fps,
                mask_s=0.4 * cores / fps,
                latency_s=self.latency_s.get(stream_id, 0.02),
                now=at,
            )

    def establish(self, stream_id: str, fps: float, cores: float, newcomer: Newcomer | None = None) -> None:
        assert isinstance(self.admit(stream_id, newcomer), Admitted)
        self.send(stream_id, fps, cores)
        assert self.run(11.0) == []
