"""Streams that come, are served by a noisy machine and go, in a time of its own, watched while Admission decides."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from service.pipeline.admission import Admission, Admitted, Eviction, Refused
from service.pipeline.processor_costs import Newcomer

PICTURE_S_PER_PIXEL = {"h264": 4.2e-9, "hevc": 5.5e-9, "jpeg": 2.0e-9}
MASK_S = 0.007
_STEP_S = 0.02
_REVIEW_EVERY = 25


@dataclass
class Client:
    """A client that wants to send until `leaves_at`, and comes back when it has been told to."""

    codec: str
    width: int
    height: int
    fps: float
    comes_at: float = 0.0
    leaves_at: float = float("inf")
    claims: Newcomer | None = None
    """What it says; the truth where None."""
    is_patient: bool = True
    stream_id: str | None = None
    inside_since: float = 0.0
    next_frame_at: float = 0.0
    answers: list[tuple[float, Admitted | Refused]] = field(default_factory=list)
    evictions: list[tuple[float, Eviction]] = field(default_factory=list)

    @property
    def newcomer(self) -> Newcomer:
        return self.claims or Newcomer(self.codec, self.width, self.height, self.fps)

    @property
    def cores(self) -> float:
        """What it truly needs."""
        return self.fps * (PICTURE_S_PER_PIXEL[self.codec] * self.width * self.height + MASK_S)


class Machine:
    """Two cores that serve; costs and latencies waver, and `stalls` are instants at which nothing moves for 0.4 s.

    `foreign_cores` are taken by somebody else, whom no one has told of.
    """

    def __init__(
        self,
        clients: list[Client],
        seed: int = 0,
        *,
        admission: Admission | None = None,
        stalls: tuple[float, ...] = (),
        foreign_cores: float = 0.0,
    ) -> None:
        self.admission = admission or Admission(2)
        self.clients = clients
        self.now = 0.0
        self.stalls = stalls
        self.foreign_cores = foreign_cores
        self._random = random.Random(seed)
        self._steps = 0

    @property
    def inside(self) -> list[Client]:
        """Those who are served, the oldest first."""
        served = [client for client in self.clients if client.stream_id is not None]
        return sorted(served, key=lambda client: client.inside_since)

    @property
    def load_cores(self) -> float:
        return sum(client.cores for client in self.inside)

    def run(self, seconds: float) -> None:
        """Let `seconds` pass."""
        ends_at = self.now + seconds
        while self.now < ends_at:
            self.step()

    def step(self) -> None:
        self.now += _STEP_S
        self._steps += 1
        for client in self.clients:
            if client.stream_id is not None and self.now >= client.leaves_at:
                self.admission.close(client.stream_id)
                client.stream_id = None
            elif client.comes_at <= self.now < client.leaves_at and client.stream_id is None:
                self._try(client)
        for client in self.inside:
            self._serve(client)
        if self._steps % _REVIEW_EVERY == 0:
            self._review()

    def _try(self, client: Client) -> None:
        stream_id = f"{self.clients.index(client)}-{len(client.answers)}"
        answer = self.admission.admit(stream_id, client.newcomer, self.now)
        client.answers.append((self.now, answer))
        if isinstance(answer, Admitted):
            client.stream_id, client.inside_since = stream_id, self.now
            client.next_frame_at = self.now + self._random.random() / client.fps
        else:
            client.comes_at = self.now + answer.retry_after_s if client.is_patient else float("inf")

    def _serve(self, client: Client) -> None:
        assert client.stream_id is not None
        while client.next_frame_at <= self.now:
            client.next_frame_at += self._random.uniform(0.7, 1.3) / client.fps
            self.admission.receive(client.stream_id, self.now)
            busy = (self.load_cores + self.foreign_cores) / 1.95
            if self._random.random() > 1 / busy:
                continue
            self.admission.serve(
                client.stream_id,
                pixels=client.width * client.height,
                picture_s=self._waver(PICTURE_S_PER_PIXEL[client.codec] * client.width * client.height),
                mask_s=self._waver(MASK_S),
                latency_s=self._draw_latency(client, busy),
                now=self.now,
            )

    def _draw_latency(self, client: Client, busy: float) -> float:
        if any(0 <= self.now - stalled_at < 0.4 for stalled_at in self.stalls):
            return 0.4
        wait_s = 0.001 * busy / (1 - busy) if busy < 0.98 else 0.15
        return self._waver(client.cores / client.fps + wait_s)

    def _waver(self, seconds: float) -> float:
        spike = 10.0 if self._random.random() < 0.002 else 1.0
        return seconds * self._random.lognormvariate(0.0, 0.25) * spike

    def _review(self) -> None:
        for eviction in self.admission.review(self.now):
            (client,) = (client for client in self.clients if client.stream_id == eviction.stream_id)
            client.evictions.append((self.now, eviction))
            client.stream_id = None
            client.comes_at = self.now + eviction.retry_after_s
