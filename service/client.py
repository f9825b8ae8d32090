"""What an operating-room workstation imports: pictures in, masks out. It holds no model and no server code.

    from service.client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.model()["name"])
        result = client.segment("frame.jpg")  # a file, encoded bytes, or uint8 RGB (H, W, 3)
        print(result.mask_hw.shape, result.timing_ms)

        with client.stream() as stream:
            for image_hwc in frames:
                stream.push(image_hwc)
                for message in stream.arrived():  # the masks that have come so far; never waits
                    show(message.mask_hw, message.latency_ms)
            for message in stream.finish():  # waits for the rest
                show(message.mask_hw, message.latency_ms)

A stream receives in a thread of its own, so one thread of yours is enough, as above; pushing in one thread
and iterating over the stream in another works too. `open_pulled`, `masks` and `close_stream` are for streams that the
service fetches itself, such as a camera's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack
from urllib.parse import quote, urlencode

import httpx

from service.answers import describe_foreign, read_json, read_problem
from service.contract.geometry import Image, Mask
from service.contract.masks import MaskFormat, decode_mask
from service.credentials import Credentials
from service.errors import (
    InvalidPictureError,
    SurgsegError,
    UnavailableError,
)
from service.mask_receiver import EventHandler, MaskReceiver
from service.mask_socket import connect_ready
from service.mask_stream import MaskStream
from service.replicas import is_passing, order_addresses
from service.route import Route
from service.wire import Codec, Mode, Shutdown, encode_picture

_SERVER_TIMING = re.compile(r"([\w-]+)\s*;[^,]*?dur=([\d.]+)")


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The answer for one picture.

    `mask_hw` is uint8 class ids, at the source picture's size or the model's scale as asked. `data` is the
    same mask as it came, in `mask_format`. `timing_ms` maps each stage of the service to milliseconds.
    """

    mask_hw: Mask
    mask_format: MaskFormat
    data: bytes
    timing_ms: dict[str, float]


class Terms(TypedDict, total=False):
    """What may be asked of a stream.

    `deadline_ms`: from a frame's arrival to its mask being sent; frames that cannot meet it are dropped.
    `priority`, 0 to 9: who goes first when frames wait. `fps`, `width`, `height`: what the stream will have; a
    service that is nearly full decides by it whether there is room.
    """

    deadline_ms: int
    priority: int
    fps: float
    width: int
    height: int


class Client:
    """A connection to a service, or to several replicas of one; any thread may use it, and each stream has one reader.

    Every failure is a SurgsegError: UnavailableError when nothing answers or the service is full, otherwise
    the error that the service named.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout_s: float = 30.0,
        token: str | None = None,
        authority: str | Path | None = None,
    ) -> None:
        """`url` is the service's address, such as http://127.0.0.1:8000 (https, ws and wss work too).

        Of several, each a replica, one is chosen by chance; the others are asked where it does not answer or is full.
        A stream that the service fetches is known to one replica only: give that one's address for it.

        `token` is what the service's operator gave you. `authority` is a PEM file of certificates to trust, where
        the service's own is from a hospital's authority that this machine does not know.
        """
        addresses = order_addresses(url)
        self._http_urls = [address.http_url for address in addresses]
        self._stream_urls = [address.stream_url for address in addresses]
        self._timeout_s = timeout_s
        self._credentials = Credentials(token, None if authority is None else Path(authority))
        self._http = httpx.Client(
            timeout=timeout_s, headers=self._credentials.headers(), verify=self._credentials.verify()
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the HTTP connections; streams are closed on their own."""
        self._http.close()

    def model(self) -> dict[str, Any]:
        """The card of the model that the service runs."""
        card: dict[str, Any] = read_json(self._request("GET", "/v1/model"))
        return card

    def streams(self) -> list[dict[str, Any]]:
        """The streams that are open, each with its `id` and what it has `received`, `segmented` and `dropped`."""
        accounts: list[dict[str, Any]] = read_json(self._request("GET", "/v1/streams"))
        return accounts

    def segment(
        self,
        image: Image | bytes | str | Path,
        *,
        mask: MaskFormat = "png",
        size: Literal["model", "source"] = "source",
    ) -> Segmentation:
        """Segment one picture: a path, encoded bytes, or uint8 RGB `(H, W, 3)`, which goes without loss."""
        query = {"mask": mask, "size": size}
        answer = self._request("POST", "/v1/segment", params=query, content=_read_picture(image))
        try:
            mask_hw = decode_mask(answer.content, mask)
        except ValueError as error:
            raise describe_foreign(answer, f"a {mask} mask") from error
        timing_ms = {
            name: float(value)
            for name, value in _SERVER_TIMING.findall(answer.headers.get("server-timing", ""))
        }
        return Segmentation(mask_hw, mask, answer.content, timing_ms)

    def stream(
        self,
        *,
        codec: Codec = "jpeg",
        mask: MaskFormat = "png",
        mode: Mode = "latest",
        on_event: EventHandler | None = None,
        capacity: int = 64,
        max_gap_s: float = 0.0,
        **terms: Unpack[Terms],
    ) -> MaskStream:
        """Open a stream; use it as a context manager. `terms` are those of Terms.

        With `max_gap_s` it outlives its connection: it goes on at another replica, or the same one, and ends only when
        none has served it for so long (see MaskStream; 10 is sensible). A service that shuts down then serves it on
        while it moves, and no frame is lost. 0: it ends with its connection.

        `mode="latest"` is for live video: a frame that the model has no time for is dropped and counted.
        `every` answers each frame, in order, and slows the pusher down instead. `capacity` is how many
        answers may lie unread (see MaskStream). `on_event` is called in the receiving thread with each
        `notice`, `error`, `leaving` and `closing` event, and must not raise; without it they are logged.
        """
        shutdown: dict[str, Shutdown] = {"shutdown": "move"} if max_gap_s else {}
        query = urlencode({"codec": codec, "mask": mask, "mode": mode, **shutdown, **terms})
        route = Route(
            self._stream_urls,
            f"/v1/stream?{query}",
            self._credentials,
            capacity=capacity,
            timeout_s=self._timeout_s,
            max_gap_s=max_gap_s,
        )
        return MaskStream(
            route.open(),
            route,
            codec=codec,
            mode=mode,
            on_event=on_event,
            capacity=capacity,
            timeout_s=self._timeout_s,
        )

    def open_pulled(
        self,
        url: str,
        *,
        mode: Mode = "latest",
        transport: str = "tcp",
        loop: bool = False,
        name: str = "",
        **terms: Unpack[Terms],
    ) -> dict[str, Any]:
        """Have the service fetch a stream itself; gives what `streams` lists of it, with its `id` for `masks`.

        `url` is rtsp://HOST/PATH, udp://ADDRESS:PORT or file:NAME, as the service's operator allows. Mode `every` and
        `loop` are for files. The stream stays open until `close_stream`.
        """
        order = {"url": url, "mode": mode, "transport": transport, "loop": loop, "name": name, **terms}
        opened: dict[str, Any] = read_json(self._ask("POST", self._http_urls[0] + "/v1/streams", json=order))
        return opened

    def masks(
        self,
        stream_id: str,
        *,
        mask: MaskFormat = "png",
        on_event: EventHandler | None = None,
        capacity: int = 64,
    ) -> MaskReceiver:
        """Watch a stream that the service fetches; use it as a context manager and iterate over it.

        `on_event` and `capacity` are those of `stream`.
        """
        path = f"/v1/streams/{quote(stream_id, safe='')}/masks?{urlencode({'mask': mask})}"
        url = self._stream_urls[0] + path
        with connect_ready(url, self._credentials, capacity, self._timeout_s) as (socket, connection, ready):
            return MaskReceiver(
                socket,
                connection.pop_all(),
                ready,
                url=url,
                mode="every" if ready.get("mode") == "every" else "latest",
                on_event=on_event,
                capacity=capacity,
                timeout_s=self._timeout_s,
            )

    def close_stream(self, stream_id: str) -> None:
        """Have the service close a stream that it fetches."""
        self._ask("DELETE", f"{self._http_urls[0]}/v1/streams/{quote(stream_id, safe='')}")

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        *others, last = self._http_urls
        for url in others:
            try:
                return self._ask(method, url + path, **arguments)
            except SurgsegError as error:
                if not is_passing(error):
                    raise
        return self._ask(method, last + path, **arguments)

    def _ask(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, url, **arguments)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"{url} does not answer ({error.__class__.__name__}: {error}).",
                "a running surgseg service",
                "Start it with `surgseg serve`, or check the address.",
            ) from error
        if answer.is_success:
            return answer
        raise read_problem(answer)


def _read_picture(image: Image | bytes | str | Path) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise InvalidPictureError(
                f"{image} cannot be read ({error.strerror}).", "a picture file", "Check the path."
            ) from error
    return encode_picture(image, "png")
