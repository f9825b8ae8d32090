"""Every environment variable of the service, read and validated once at start. Nothing below reads them."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.contract.model_card import Precision
from service.errors import InvalidRequestError
from service.processors import available_cores

_PREFIX = "SURGSEG_"
Positive = Annotated[int, Field(ge=1)]
PullScheme = Literal["rtsp", "rtsps", "udp"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
PositiveSeconds = Annotated[float, Field(gt=0)]


_MOST_SIDE_BY_SIDE = 8


def _plan_batch_sizes(threads: int | None) -> tuple[int, ...]:
    """Every size up to a frame for each thread: more would make the first frame of a batch wait for the last."""
    return tuple(range(1, min(threads or available_cores(), _MOST_SIDE_BY_SIDE) + 1))


class Settings(BaseSettings):
    """The service's settings; each field is the environment variable `SURGSEG_` + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")

    bundle: Path | None = Field(None, description="bundle folder; the one that ships with surgseg if unset")
    fingerprint: Annotated[frozenset[Fingerprint] | None, NoDecode] = Field(
        None,
        description="SHA-256 of the bundle's card, or several as A,B; any other bundle is refused if set",
    )
    bundles: Path | None = Field(
        None, description="folder of the bundles that POST /v1/model may put in its place; none if unset"
    )
    swap_limit_s: PositiveSeconds = Field(
        120.0, description="how long such a bundle may take to be opened and proven"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    backend: str = Field("auto", description="inference runtime, or auto")
    precision: Precision | None = Field(
        None,
        description="float32, float16, bfloat16 or int8; the fastest that this bundle and machine have if unset",
    )
    engines: Path | None = Field(
        None, description="folder of TensorRT engines; surgseg/engines in the user's cache if unset"
    )
    threads: Positive | None = Field(None, description="threads of one inference; all cores if unset")
    batch_sizes: Annotated[tuple[Positive, ...], NoDecode] = Field(
        default_factory=lambda fields: _plan_batch_sizes(fields.get("threads")),
        description="batch sizes that are warmed at start, as 1,2,4; up to one frame for each thread if unset",
    )
    max_streams: Positive = Field(16, description="streams open at once")
    max_requests: Positive = Field(32, description="POST /v1/segment requests worked on at once")
    max_body_bytes: Positive = Field(32 * 2**20, description="largest request body or WebSocket message")
    max_pixels: Positive = Field(50_000_000, description="largest picture, width x height")
    body_timeout_s: PositiveSeconds = Field(30.0, description="how long a request body may take to arrive")
    deadline_s: PositiveSeconds = Field(1.0, description="how long a live frame may wait for the model")
    request_deadline_s: PositiveSeconds = Field(30.0, description="how long a posted picture may wait")
    decoder_memory_bytes: Positive = Field(2**30, description="what one video decoder may allocate")
    decoder_behind_s: PositiveSeconds = Field(
        0.06, description="how late a live decoder may be before it skips"
    )
    decoder_hang_s: PositiveSeconds = Field(3.0, description="how long a decoder may be silent over its work")
    decoder_restarts: Positive = Field(5, description="failures in a row that end a stream")
    stall_s: PositiveSeconds = Field(5.0, description="silence after which a pulled stream is opened again")
    reconnect_s: PositiveSeconds = Field(
        10.0, description="longest pause before a pulled stream is opened again"
    )
    pull_schemes: Annotated[frozenset[PullScheme], NoDecode] = Field(
        frozenset({"rtsp", "udp"}), description="schemes that POST /v1/streams may open, as rtsp,rtsps,udp"
    )
    pull_hosts: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="hosts that POST /v1/streams may open, as camera-2,10.0.7.0/24, or * for any; none if unset",
    )
    files: Path | None = Field(
        None, description="folder whose files POST /v1/streams may open; none if unset"
    )
    max_viewers: Positive = Field(32, description="viewers of one pulled stream at once")
    viewer_timeout_s: PositiveSeconds = Field(
        30.0, description="how long a viewer may take nothing while masks wait for it"
    )
    admission: bool = Field(True, description="refuse a stream that would make the others late")
    every_depth: Positive = Field(4, description="frames under way at once on a mode=every stream")
    probe_interval_s: PositiveSeconds = Field(5.0, description="idle time before the golden picture is run")
    ready_window_s: PositiveSeconds = Field(15.0, description="/readyz is true this long after an inference")
    drain_timeout_s: PositiveSeconds = Field(10.0, description="how long frames in flight may take to end")
    tokens: Path | None = Field(
        None, description="file of hashed tokens (surgseg token); without one nobody needs a token"
    )
    open: bool = Field(False, description="serve others than this machine although there are no tokens")
    origins: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), description="web pages that may use the service besides its own, as https://a,https://b"
    )
    tls_certificate: Path | None = Field(None, description="PEM file: the certificate and those above it")
    tls_key: Path | None = Field(None, description="PEM file: the certificate's key, without a passphrase")
    audit: Path | None = Field(None, description="folder of the audit record; none is kept if unset")
    audit_days: Annotated[float, Field(gt=0)] = Field(90.0, description="how long the audit record is kept")
    audit_bytes: int = Field(
        10 * 2**30, ge=2**20, description="largest audit record; the oldest files go first"
    )
    audit_strict: bool = Field(
        False, description="take no new stream or picture while the audit record cannot be written"
    )
    scene: bool = Field(True, description="offer the synthetic scene at /v1/scene")
    log_level: LogLevel = Field("info", description="least severe line logged")
    log_format: LogFormat = Field("text", description="lines for people, or a JSON object each")

    @field_validator("batch_sizes", "fingerprint", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("tokens", "tls_certificate", "tls_key", mode="before")
    @classmethod
    def _read_empty_as_unset(cls, value: Any) -> Any:
        """A variable that is there and empty is what `${NAME:-}` gives; a path it is not."""
        return value or None

    @field_validator("pull_schemes", "pull_hosts", "origins", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """As `_split_commas`; nothing between the commas means that nothing is allowed."""
        if not isinstance(value, str):
            return value
        return [part.strip().lower() for part in value.split(",") if part.strip()]

    @field_validator("pull_hosts", mode="after")
    @classmethod
    def _check_networks(cls, value: frozenset[str]) -> frozenset[str]:
        for host in value:
            if "/" in host:
                ipaddress.ip_network(host)
        return value

    @field_validator("batch_sizes", mode="after")
    @classmethod
    def _sort(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process; overrides win over the environment, unless None.

    Raises InvalidRequestError that names the first bad setting.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = _PREFIX + str(first["loc"][0]).upper()
        raise InvalidRequestError(
            f"{name} is {first['input']!r}: {first['msg']}.",
            "a value that the setting allows",
            f"Change {name}, or the command line option that sets it.",
        ) from error
