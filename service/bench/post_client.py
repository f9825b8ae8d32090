"""Clients that post pictures, each waiting for its answer before the next: one event loop in a process of its own.

HTTP/1.1 by hand, as far as it takes: a full client library costs as much processor time as the service itself.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

from service.bench.child_process import serve_parent
from service.bench.records import PostJob, PostResult

_WARM_UP = 3  # requests of each client before the clock runs


def post(job: PostJob) -> PostResult:
    """Post until the time is over."""
    return asyncio.run(_post_all(job))


async def _post_all(job: PostJob) -> PostResult:
    clients = [_Poster(job, index) for index in range(job.clients)]
    await asyncio.gather(*(client.warm_up() for client in clients))
    started_at, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client.run(started_at + job.seconds) for client in clients))
    return PostResult(
        durations_ms=[duration for client in clients for duration in client.durations_ms],
        failures=sum(client.failures for client in clients),
        elapsed_s=time.perf_counter() - started_at,
        cpu_s=time.process_time() - cpu_s,
        first_answer=clients[0].first_answer,
    )


class _Poster:
    """One client with one connection that stays open."""

    def __init__(self, job: PostJob, index: int) -> None:
        parts = urlsplit(job.url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        self._address = (parts.hostname, parts.port)
        self._requests = [
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(picture)}\r\n\r\n".encode()
            + picture
            for picture in job.pictures
        ]
        self._next = index * 7
        self.durations_ms: list[float] = []
        self.failures = 0
        self.first_answer = b""

    async def warm_up(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._address, limit=2**22)
        self._next, first = 0, self._next
        _, self.first_answer = await self._ask()
        self._next = first
        for _ in range(_WARM_UP):
            await self._ask()

    async def run(self, ends_at: float) -> None:
        while (started_at := time.perf_counter()) < ends_at:
            status, _ = await self._ask()
            self.durations_ms.append((time.perf_counter() - started_at) * 1e3)
            self.failures += status != 200
        self._writer.close()

    async def _ask(self) -> tuple[int, bytes]:
        """Post the next picture; gives the status and the body."""
        self._writer.write(self._requests[self._next % len(self._requests)])
        self._next += 1
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await self._reader.readexactly(int(fields["content-length"]))
        return int(lines[0].split()[1]), body


if __name__ == "__main__":
    serve_parent(post)
