"""What passes between the measuring process and the processes that push: jobs, and what became of each stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.bench.arrivals import Arrivals
from service.bench.scenarios import StreamSpec
from service.credentials import Credentials


@dataclass(frozen=True, slots=True)
class PushJob:
    """Streams to push to `url` from one process. Instants are monotonic seconds of this machine.

    Stream k opens `stagger_s` after stream k - 1; all end at `ends_at`. `payloads[materials[k]]` are its messages.
    """

    url: str
    specs: tuple[StreamSpec, ...]
    payloads: tuple[tuple[bytes, ...], ...]
    materials: tuple[int, ...]
    arrivals: Arrivals
    begins_in_s: float
    seconds: float
    stagger_s: float
    seed: int
    credentials: Credentials = field(default_factory=Credentials)


@dataclass(frozen=True, slots=True)
class Account:
    """The service's account of a stream, from `GET /v1/streams`."""

    received: int
    segmented: int
    dropped: dict[str, int]

    @property
    def pending(self) -> int:
        """Frames that are neither segmented nor dropped yet."""
        return self.received - self.segmented - sum(self.dropped.values())


@dataclass(slots=True)
class StreamRecord:
    """What one stream did, as its client saw it. The lists have one entry an answer, in the order of their arrival.

    `pushed_at_s` counts from the beginning of the measurement. `encoded_ms` is what the service says from a frame's
    arrival to its encoded mask; `round_trip_ms` runs from before the frame was handed to the network to the mask's
    arrival here. `late_ms`, one a frame, is how much later than due it was pushed. `refusal` is why the stream was
    never opened, `ended` why it was ended by the service, at `ended_at_s`. `account` is the service's, taken before
    the stream was closed by its client; None where it was not.
    """

    name: str
    spec: StreamSpec
    connections: int = 0
    pushed: int = 0
    answered: int = 0
    skipped: int = 0
    errors: int = 0
    began_at_s: float = 0.0
    stopped_at_s: float = 0.0
    refusal: str = ""
    ended: str = ""
    ended_at_s: float | None = None
    account: Account | None = None
    pushed_at_s: list[float] = field(default_factory=list)
    round_trip_ms: list[float] = field(default_factory=list)
    encoded_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    late_ms: list[float] = field(default_factory=list)

    @property
    def active_s(self) -> float:
        """How long it was pushed."""
        return max(0.0, self.stopped_at_s - self.began_at_s)


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a pushing process gives back. `began_at` is monotonic seconds; `cpu_s` its processor time meanwhile."""

    records: list[StreamRecord]
    began_at: float
    elapsed_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class PostJob:
    """Pictures to post to `url`, by `clients` that each wait for an answer before the next picture."""

    url: str
    pictures: tuple[bytes, ...]
    clients: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PostResult:
    """`durations_ms`, one a request; `failures` are answers other than 200."""

    durations_ms: list[float]
    failures: int
    elapsed_s: float
    cpu_s: float
    first_answer: bytes
