"""Ten thousand fuzzed requests and as many WebSocket messages against a real service, beside a good stream.

    python -m tests.soak.fuzzing --count 10000 --seed 0 --json fuzzing.json

Requests are made by schemathesis from the OpenAPI document of the running service, valid and invalid, and by
`strange_requests` from none; messages from docs/asyncapi.yaml. They come with tokens of every scope and without.
Passes when nothing was answered with 5xx but a documented 503, every refusal was a problem document, every answer and
close code was one that the documents name, nobody got what its token is not for, the log has no traceback and no line
that a stranger made long, memory has stopped growing after the warm-up, nothing is left behind, and the good stream
got the right mask for every frame. `--spoil NAME` serves with a deliberate fault, which must be found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.soak.accounts import describe_process, describe_service, find_service_faults, report, wait_settled
from tests.soak.fuzz_answers import MOST_LINE_CHARACTERS, HttpJudge, SocketJudge
from tests.soak.fuzz_senders import Sender
from tests.soak.fuzzed_messages import FuzzedSocket, SocketMaker
from tests.soak.fuzzed_requests import FuzzedRequest, RequestMaker
from tests.soak.fuzzing_site import Site, open_site
from tests.soak.steady_stream import SteadyStream
from tests.soak.unsteady_clients import MOST_GROWTH, measure_growth

_BATCH = 250
_AT_ONCE = 3
_MOST_EXAMPLES = 5


class Fuzzing:
    """One run against one service: what was sent, what came, and what of it was wrong."""

    def __init__(self, site: Site) -> None:
        headers = {"Authorization": f"Bearer {site.secrets['all']}"}
        document = httpx.get(f"{site.server.url}/openapi.json", headers=headers).json()
        self._requests = RequestMaker(document, site.secrets, site.pictures)
        self._sockets = SocketMaker(site.pictures)
        self._http = HttpJudge(document)
        self._ws = SocketJudge(self._sockets.document, self._http)
        self._sender = Sender(site)
        self._digest = hashlib.sha256()
        self.answers: dict[str, Counter[str]] = {}
        self.kinds: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.faults: dict[str, list[str]] = {}

    def run_batch(self, count: int, number: int, pool: ThreadPoolExecutor) -> None:
        """`count` requests and `count` messages, mixed."""
        requests, sockets = self._requests.make(count, number), self._sockets.make(count, number)
        for each in (*requests, *sockets):
            self._digest.update(repr(each).encode())
        jobs = [(self._send, each) for each in requests] + [(self._speak, each) for each in sockets]
        random.Random(number).shuffle(jobs)
        for future in [pool.submit(job, each) for job, each in jobs]:
            future.result()
        self._sender.close_streams()

    @property
    def digest(self) -> str:
        """Of all that was sent: alike wherever the seed and the documents are."""
        return self._digest.hexdigest()

    def _send(self, request: FuzzedRequest) -> None:
        answer = self._sender.request(request)
        self.answers.setdefault(request.operation, Counter())[str(answer.status)] += 1
        self.kinds[request.kind] += 1
        self._note(
            f"{request.operation} {request.target[:200]!r}", self._http.find_faults(request, answer), request
        )

    def _speak(self, socket: FuzzedSocket) -> None:
        answer = self._sender.speak(socket)
        self.messages.update(["opening", *(kind for kind, _ in socket.messages)])
        self.closed[str(answer.close_code or answer.handshake.status)] += 1
        self._note(f"{socket.channel} {socket.target[:200]!r}", self._ws.find_faults(socket, answer), socket)

    def _note(self, where: str, found: list[str], sent: FuzzedRequest | FuzzedSocket) -> None:
        for fault in found:
            examples = self.faults.setdefault(fault[:300], [])
            if len(examples) < _MOST_EXAMPLES:
                examples.append(f"{where} as {sent.holder}: {_shorten(sent)}")


def _shorten(sent: FuzzedRequest | FuzzedSocket) -> str:
    if isinstance(sent, FuzzedRequest):
        return repr(sent.data[:400])
    return ", ".join(f"{kind} {repr(message)[:60]}" for kind, message in sent.messages)


def run(count: int, seed: int, spoil: str | None = None) -> dict[str, Any]:
    """Send `count` requests and `count` messages, and give the whole account."""
    program = ("-m", "service") if spoil is None else ("-m", "tests.soak.spoilt_service", spoil)
    with tempfile.TemporaryDirectory() as folder:
        site = open_site(Path(folder), program)
        try:
            account = _measure(site, count, seed)
        finally:
            code = site.stop()
        return {**account, "exit code": code, "log": _read_log(site.server.output)}


def _measure(site: Site, count: int, seed: int) -> dict[str, Any]:
    token, url, pid = site.secrets["all"], site.server.url, site.server.process.pid
    good = SteadyStream(url, token, site.pictures["jpeg"])
    fuzzing, readings = Fuzzing(site), list[dict[str, int]]()
    started_at = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for first in range(0, count, _BATCH):
            fuzzing.run_batch(min(_BATCH, count - first), seed * 1_000_000 + first, pool)
            wait_settled(url, 1, token)
            readings.append({"sent": min(count, first + _BATCH), **describe_process(pid)})
            print(f"{time.monotonic() - started_at:7.0f} s  {readings[-1]}", file=sys.stderr, flush=True)
    steady = good.end()
    wait_settled(url, 0, token)
    time.sleep(1.0)
    return {
        "seconds": round(time.monotonic() - started_at),
        "requests": {name: dict(sorted(counts.items())) for name, counts in sorted(fuzzing.answers.items())},
        "kinds of requests": dict(fuzzing.kinds),
        "messages": dict(sorted(fuzzing.messages.items())),
        "WebSockets ended with": dict(sorted(fuzzing.closed.items())),
        "sha256 of all that was sent": fuzzing.digest,
        "good": steady,
        "memory growth": round(measure_growth(readings), 4) if len(readings) > 7 else 0.0,
        "readings": readings,
        "found": fuzzing.faults,
        **describe_service(site.server, token),
    }


def _read_log(lines: list[str]) -> dict[str, Any]:
    """What the log looks like to a machine: every line an object, none long, none a traceback."""
    strange = [line[-2500:] for line in lines if not _is_proper(line)]
    return {
        "lines": len(lines),
        "longest": max(map(len, lines)),
        "not proper": strange[:_MOST_EXAMPLES],
        "tracebacks": sum("Traceback" in line for line in lines),
    }


def _is_proper(line: str) -> bool:
    try:
        fields = json.loads(line)
    except ValueError:
        return False
    return (
        len(line) <= MOST_LINE_CHARACTERS
        and fields["message"].isprintable()
        and "traceback" not in fields
        and fields["level"] not in ("error", "critical")
    )


def find_faults(account: dict[str, Any]) -> list[str]:
    """What must not be, in words."""
    faults = [f"{fault} ({examples[0]})" for fault, examples in account["found"].items()]
    faults += find_service_faults(account)
    if account["exit code"] != 0:
        faults.append(f"the service ended with {account['exit code']}")
    if account["log"]["not proper"] or account["log"]["tracebacks"]:
        faults.append(f"the log: {account['log']}")
    good = account["good"]
    if good["wrong"] or good["failure"] or good["answered"] != good["pushed"] or not good["pushed"]:
        faults.append(f"the good stream lost frames or got wrong masks: {good}")
    early, late = account["readings"][len(account["readings"]) // 4], account["readings"][-1]
    if late["descriptors"] > early["descriptors"] + 4 or late["threads"] > early["threads"] + 4:
        faults.append(f"descriptors or threads are left: {early}, {late}")
    if account["memory growth"] >= MOST_GROWTH:
        faults.append(f"memory grew by {account['memory growth']:.1%} after the warm-up")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="of requests, and of messages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--spoil",
        help="serve with deliberate faults, which must be found: broken, leaking, careless, talkative",
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    account = run(arguments.count, arguments.seed, arguments.spoil)
    faults = find_faults(account)
    report(account, faults, arguments.json)
    return 1 if bool(faults) == (arguments.spoil is None) else 0


if __name__ == "__main__":
    sys.exit(main())
