"""The client of a measurement: all its streams on one event loop, in a process of its own.

One thread, so its streams do not wait for each other's interpreter lock, and masks are not decoded: the less it does
the less it takes from a service on the same machine. How late it pushed, and the processor time it took, are in its
result, so that a measurement that its client spoiled can be told.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from service.bench.arrivals import plan_arrivals
from service.bench.child_process import serve_parent
from service.bench.records import Account, PushJob, PushResult, StreamRecord
from service.client import Client
from service.errors import SurgsegError
from service.wire import PushedFrame, pack_frame, rebuild_error, unpack_event, unpack_mask

_OPEN_AHEAD_S = 2.0  # decoders have started when the first frame comes
_INTACT_S = 1.0  # how long a stream that will misbehave is pushed in good order
_CONNECTED_S, _AWAY_S = 1.0, 0.25
_SETTLE_S, _LOOK_S = 5.0, 0.1
_MOST_FLIPS = 8


def push(job: PushJob) -> PushResult:
    """Push every stream of a job to its end."""
    shown = job.credentials
    with Client(
        job.url, token=shown.token, authority=shown.authority
    ) as client:  # made now: it takes long enough to hold up frames
        gc.freeze()
        return asyncio.run(_push_all(job, client))


async def _push_all(job: PushJob, client: Client) -> PushResult:
    loop = asyncio.get_running_loop()
    begins_at = loop.time() + job.begins_in_s
    streams = [_Stream(job, client, index, begins_at) for index in range(len(job.specs))]
    cpu_s = time.process_time()
    async with asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(stream.run())
    return PushResult(
        [stream.record for stream in streams],
        began_at=begins_at,
        elapsed_s=loop.time() - begins_at,
        cpu_s=time.process_time() - cpu_s,
    )


class _Stream:
    """One stream from its opening to its end, whatever its behaviour. asyncio's clock is time.monotonic."""

    def __init__(self, job: PushJob, client: Client, index: int, begins_at: float) -> None:
        self._job = job
        self._client = client
        self._spec = job.specs[index]
        self._index = index
        self._payloads = job.payloads[job.materials[index]]
        self._begins_at = begins_at
        self._opens_at = begins_at + index * job.stagger_s
        # Cameras are not in step: the streams' frames are spread over the time of one frame.
        phase_s = index / (len(job.specs) * self._spec.fps)
        self._first_at = self._opens_at + phase_s
        self._ends_at = begins_at + job.seconds + phase_s
        self._random = random.Random(job.seed * 1000 + index)
        self._stream_id = ""
        self.record = StreamRecord(f"{index + 1}: {self._spec.describe()}", self._spec)

    async def run(self) -> None:
        """Open, push as the stream's behaviour wants, settle, close."""
        await _sleep_until(self._opens_at - _OPEN_AHEAD_S)
        if self._spec.behaviour == "reconnecting":
            await self._reconnect()
            return
        async with self._connect() as socket:
            if socket is None:
                return
            reader = asyncio.create_task(self._read(socket))
            try:
                await self._push(socket, self._first_at, self._ends_at)
                await self._settle(reader)
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def _reconnect(self) -> None:
        """Break off without a word every second, and come back."""
        now = asyncio.get_running_loop().time
        first_at = self._first_at
        while now() < self._ends_at and not self.record.ended:
            async with self._connect() as socket:
                if socket is None:
                    return
                reader = asyncio.create_task(self._read(socket))
                leaves_at = min(max(now(), first_at) + _CONNECTED_S, self._ends_at)
                await self._push(socket, first_at, leaves_at)
                socket.transport.abort()
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
            await asyncio.sleep(_AWAY_S)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[ClientConnection | None]:
        """An open stream that has said `ready`; None where it was refused, and then the record says why."""
        address = self._job.url.replace("http", "ws", 1)
        spec = self._spec
        url = f"{address}/v1/stream?codec={spec.codec}&mask=png&mode=latest&fps={spec.fps:g}"
        url += f"&width={spec.width}&height={spec.height}"
        try:
            socket = await connect(
                url,
                compression=None,
                max_size=None,
                ping_interval=None,
                close_timeout=2,
                ssl=self._job.credentials.verify() if url.startswith("wss:") else None,
                additional_headers=self._job.credentials.headers(),
            )
        except (OSError, WebSocketException) as error:
            self.record.refusal = f"{error.__class__.__name__}: {error}"
            yield None
            return
        try:
            event = unpack_event(str(await socket.recv()))
            if event["type"] == "ready":
                self._stream_id = str(event["stream"])
                self.record.connections += 1
                yield socket
            else:
                self.record.refusal = str(rebuild_error(event))
                yield None
        except ConnectionClosed as error:
            self._note_end(f"the connection was closed ({error})")
        finally:
            with suppress(ConnectionClosed, OSError):
                await socket.close()

    async def _push(self, socket: ClientConnection, first_at: float, ends_at: float) -> None:
        """Push each frame when it is due; a late one goes at once."""
        loop, record = asyncio.get_running_loop(), self.record
        if loop.time() > first_at + 1 / self._spec.fps:
            first_at = loop.time()  # a stream that was opened late begins late, not with a burst
        if not record.pushed:
            record.began_at_s = first_at - self._begins_at
        is_stalling = self._spec.behaviour == "stalled"
        seconds = min(ends_at - first_at, _INTACT_S) if is_stalling else ends_at - first_at
        due: Iterable[float] = ()
        if seconds > 0:
            due = plan_arrivals(self._job.arrivals, self._spec.fps, seconds, self._job.seed + self._index)
        for number, due_s in enumerate(due):
            await _sleep_until(first_at + due_s)
            payload = self._payloads[number % len(self._payloads)]
            if self._spec.behaviour == "corrupt" and due_s > _INTACT_S:
                payload = damage(payload, self._random)
            now = loop.time()
            try:
                await socket.send(pack_frame(PushedFrame(round(now * 1e6), payload)))
            except ConnectionClosed:
                break  # the reader says why
            record.pushed += 1
            record.late_ms.append((now - first_at - due_s) * 1e3)
        else:
            await _sleep_until(ends_at)
        record.stopped_at_s = loop.time() - self._begins_at

    async def _read(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        try:
            async for message in socket:
                if isinstance(message, str):
                    self._take_event(message)
                else:
                    self._take_answer(message, loop.time())
            self._note_end(f"closed with {socket.close_code} {socket.close_reason or ''}".rstrip())
        except ConnectionClosed as error:
            self._note_end(f"the connection was lost ({error})")

    def _take_answer(self, message: bytes, arrived_at: float) -> None:
        header, _ = unpack_mask(message)
        record = self.record
        record.answered += 1
        record.skipped = header.skipped
        pushed_at = header.captured_at_us / 1e6
        record.pushed_at_s.append(pushed_at - self._begins_at)
        record.round_trip_ms.append((arrived_at - pushed_at) * 1e3)
        record.encoded_ms.append(sum(header.latency_ms.values()))
        for stage, duration_ms in header.latency_ms.items():
            record.stages_ms.setdefault(stage, []).append(duration_ms)

    def _take_event(self, message: str) -> None:
        event = unpack_event(message)
        if event["type"] == "error":
            self.record.errors += 1
            if event.get("fatal", True):
                self._note_end(str(rebuild_error(event)))
        elif event["type"] == "closing":
            self._note_end(str(event.get("reason", "")))

    def _note_end(self, why: str) -> None:
        """The service ended the stream; the first reason is the one that counts."""
        if not self.record.ended:
            self.record.ended = why
            self.record.ended_at_s = asyncio.get_running_loop().time() - self._begins_at

    async def _settle(self, reader: asyncio.Task[None]) -> None:
        """Wait until every frame is accounted for and every answer is here; keep the service's account."""
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + _SETTLE_S
        while not reader.done():
            account = await asyncio.to_thread(_find_account, self._client, self._stream_id)
            if account is not None:
                self.record.account = account
            if self._is_settled() or loop.time() > gives_up_at:
                return
            await asyncio.sleep(_LOOK_S)

    def _is_settled(self) -> bool:
        record, account = self.record, self.record.account
        return (
            account is not None
            and account.received == record.pushed
            and account.pending == 0
            and account.segmented == record.answered + record.skipped
        )


def damage(payload: bytes, source: random.Random) -> bytes:
    """The payload, or in half the cases one that is cut short, noise, or has bits turned over; its start stays."""
    kind = source.random()
    if kind < 0.5 or len(payload) < 16:
        return payload
    if kind < 0.6:
        return payload[: source.randrange(8, len(payload))]
    if kind < 0.7:
        return payload[:5] + source.randbytes(len(payload) - 5)
    damaged = bytearray(payload)
    for _ in range(source.randint(1, _MOST_FLIPS)):
        damaged[source.randrange(5, len(damaged))] ^= 1 << source.randrange(8)
    return bytes(damaged)


def _find_account(client: Client, stream_id: str) -> Account | None:
    try:
        streams: Sequence[dict[str, object]] = client.streams()
    except SurgsegError:
        return None
    for entry in streams:
        if entry["id"] == stream_id:
            return _read_account(entry)
    return None


def _read_account(entry: dict[str, object]) -> Account:
    dropped = entry["dropped"]
    assert isinstance(dropped, dict)
    return Account(int(str(entry["received"])), int(str(entry["segmented"])), dict(dropped))


async def _sleep_until(at: float) -> None:
    left_s = at - asyncio.get_running_loop().time()
    if left_s > 0:
        await asyncio.sleep(left_s)


if __name__ == "__main__":
    serve_parent(push)
