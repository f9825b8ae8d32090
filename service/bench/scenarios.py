"""What can be measured, by name. Pure: which streams there are, how they behave, how long each measurement is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from service.errors import InvalidRequestError

Behaviour = Literal["steady", "stalled", "corrupt", "reconnecting"]
"""`stalled` falls silent and stays connected, `corrupt` damages frames, `reconnecting` breaks off and comes back."""

Kind = Literal["streams", "memory", "post", "swap"]


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream that is offered; `width` x `height` are the pictures' pixels."""

    codec: str
    width: int
    height: int
    fps: float
    behaviour: Behaviour = "steady"

    def describe(self) -> str:
        """Size, rate and codec in a few words."""
        manner = "" if self.behaviour == "steady" else f" {self.behaviour}"
        return f"{self.width}x{self.height} {self.fps:g} fps {self.codec}{manner}"


@dataclass(frozen=True, slots=True)
class Phase:
    """Streams that run together. `settings` is the environment of the service that is started for it."""

    name: str
    streams: tuple[StreamSpec, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Phases that are measured in turns, `rounds` times, `seconds` each. Stream k opens `stagger_s` after k - 1."""

    summary: str
    phases: tuple[Phase, ...] = ()
    kind: Kind = "streams"
    seconds: float = 60.0
    rounds: int = 1
    stagger_s: float = 0.0

    @property
    def most_streams(self) -> int:
        """Streams open at once in its largest phase."""
        return max((len(phase.streams) for phase in self.phases), default=1)


_JPEG_720P25 = StreamSpec("jpeg", 1280, 720, 25)
_H264_720P25 = StreamSpec("h264", 1280, 720, 25)
_EIGHT_1080P30 = (StreamSpec("h264", 1920, 1080, 30),) * 8
_ALL_ADMITTED = {"SURGSEG_ADMISSION": "off"}
_TWO_GOOD = (_H264_720P25,) * 2
_THREE_BAD = (
    replace(_H264_720P25, behaviour="stalled"),
    replace(_H264_720P25, behaviour="corrupt"),
    replace(_H264_720P25, behaviour="reconnecting"),
)

SCENARIOS: dict[str, Scenario] = {
    "one-1080p60-h264": Scenario(
        "one H.264 stream of 1080p60", (Phase("one stream", (StreamSpec("h264", 1920, 1080, 60),)),)
    ),
    "one-720p25-jpeg": Scenario("one stream of 720p25 as JPEG", (Phase("one stream", (_JPEG_720P25,)),)),
    "four-720p25": Scenario("four streams of 720p25 as JPEG", (Phase("four streams", (_JPEG_720P25,) * 4),)),
    "four-720p25-mixed": Scenario(
        "four streams of 720p25: two JPEG, one H.264, one HEVC",
        (
            Phase(
                "four streams",
                (_JPEG_720P25, _JPEG_720P25, _H264_720P25, replace(_H264_720P25, codec="hevc")),
            ),
        ),
    ),
    "overload-8x1080p30-h264": Scenario(
        "eight H.264 streams of 1080p30, with admission and without",
        (
            Phase("with admission", _EIGHT_1080P30),
            Phase("without admission", _EIGHT_1080P30, _ALL_ADMITTED),
        ),
        seconds=120.0,
        stagger_s=1.0,
    ),
    "disturbed": Scenario(
        "two good H.264 streams of 720p25: alone, beside three more good ones, and beside a stalled, a corrupt and a "
        "reconnecting one",
        (
            Phase("alone", _TWO_GOOD, _ALL_ADMITTED),
            Phase("beside good ones", (_H264_720P25,) * 5, _ALL_ADMITTED),
            Phase("beside bad ones", _TWO_GOOD + _THREE_BAD, _ALL_ADMITTED),
        ),
        seconds=20.0,
        rounds=3,
    ),
    "memory": Scenario(
        "frames in memory through the service, against a bare loop over them",
        kind="memory",
        seconds=5.0,
        rounds=3,
    ),
    "post-720p": Scenario(
        "POST of 720p JPEG at 1 and 8 clients, against a plain FastAPI endpoint",
        kind="post",
        seconds=5.0,
        rounds=3,
    ),
    "swap": Scenario(
        "four streams of 720p25 as JPEG whose model is changed every 8 s, against the time between the changes",
        kind="swap",
        seconds=60.0,
        rounds=3,
    ),
}
"""Name -> what is measured. `seconds` is the length of each measurement, unless the command says otherwise."""


def adapt_scenario(
    scenario: Scenario,
    *,
    streams: int | None = None,
    codec: str | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> Scenario:
    """The scenario with what the options change; `size` is (width, height).

    Raises InvalidRequestError for a number of streams where they are not all alike.
    """
    phases = []
    for phase in scenario.phases:
        specs = phase.streams
        if streams is not None:
            if len(set(specs)) != 1:
                raise InvalidRequestError(
                    f"--streams is {streams}.", "no number: this scenario's streams differ", "Leave it out."
                )
            specs = specs[:1] * streams
        phases.append(replace(phase, streams=tuple(_adapt(spec, codec, fps, size) for spec in specs)))
    return replace(scenario, phases=tuple(phases))


def _adapt(
    spec: StreamSpec, codec: str | None, fps: float | None, size: tuple[int, int] | None
) -> StreamSpec:
    width, height = size or (spec.width, spec.height)
    return replace(spec, codec=codec or spec.codec, fps=fps or spec.fps, width=width, height=height)
