"""Clients that crash, stall and come back for long, beside two good ones: `python -m tests.soak.unsteady_clients`.

Passes when the service's memory has stopped growing after the warm-up, the good streams got the right mask for every
frame they were answered, every frame received has one fate, and nothing is left. `--leak` serves with a deliberate
leak, which must be found: a soak that cannot fail proves nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from service.wire import PushedFrame, encode_picture, pack_frame
from tests.bitstreams import draw_code, encode_codes
from tests.conftest import start_server, write_small_bundle
from tests.soak.accounts import describe_process, describe_service, find_service_faults, report, wait_settled
from tests.soak.mutated_streams import GoodStream

MOST_GROWTH = 0.05
_UNSTEADY = 4
_FPS = 15.0
_LEAKING = ("-m", "tests.soak.leaking_service")


class UnsteadyClient:
    """One stream after the other, each ended in one of the ways in which real ones end."""

    ENDINGS = ("close", "crash", "stall unread", "stall silent", "garbage")

    def __init__(self, ws_url: str, seed: int, payloads: dict[str, list[bytes]]) -> None:
        self._ws_url = ws_url
        self._source = random.Random(seed)
        self._payloads = payloads
        self._ends = threading.Event()
        self.ended: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop after the stream at hand."""
        self._ends.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ends.is_set():
            ending = self._source.choice(self.ENDINGS)
            with contextlib.suppress(WebSocketException, OSError):
                self._live_once(ending)
            self.ended[ending] += 1

    def _live_once(self, ending: str) -> None:
        codec = self._source.choice(list(self._payloads))
        mode = self._source.choice(("latest", "latest", "every"))
        with connect(f"{self._ws_url}/v1/stream?codec={codec}&mode={mode}", max_size=2**25) as socket:
            lasts_s = self._source.uniform(0.2, 2.5)
            reader = None if ending == "stall unread" else _read_in_background(socket)
            self._push(socket, self._payloads[codec], lasts_s)
            if ending == "stall silent":
                self._ends.wait(self._source.uniform(0.5, 3.0))
            elif ending == "garbage":
                for _ in range(5):
                    socket.send(self._source.randbytes(self._source.randint(1, 2000)))
            elif ending == "crash":
                socket.socket.shutdown(SHUT_RDWR)
        if reader is not None:
            reader.join(5)

    def _push(self, socket: ClientConnection, payloads: list[bytes], lasts_s: float) -> None:
        for number in range(int(lasts_s * _FPS)):
            socket.send(pack_frame(PushedFrame(number + 1, payloads[number % len(payloads)])))
            if self._ends.wait(1 / _FPS):
                return


def _read_in_background(socket: ClientConnection) -> threading.Thread:
    def read() -> None:
        with contextlib.suppress(WebSocketException, OSError, EOFError):
            for _ in socket:
                pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return reader


def run(seconds: float, seed: int, is_leaking: bool) -> dict[str, Any]:
    """Serve for `seconds` and give the account."""
    images = [draw_code(number, 1280, 720) for number in range(30)]
    payloads = {
        "jpeg": [encode_picture(np.ascontiguousarray(image_hwc), "jpeg") for image_hwc in images],
        **{codec: encode_codes(range(30), codec, 1280, 720) for codec in ("h264", "hevc")},
    }
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_small_bundle(bundle)
        server = start_server(
            *("--port", "0", "--bundle", str(bundle)),
            program=_LEAKING if is_leaking else ("-m", "service"),
            SURGSEG_ADMISSION="0",
        )
        try:
            return _measure(server, seconds, seed, payloads)
        finally:
            server.stop()


def _measure(server: Any, seconds: float, seed: int, payloads: dict[str, list[bytes]]) -> dict[str, Any]:
    good = [GoodStream(server.url, codec) for codec in ("h264", "hevc")]
    for stream in good:
        stream.start()
    clients = [UnsteadyClient(server.ws_url, seed * 100 + index, payloads) for index in range(_UNSTEADY)]
    started_at, readings = time.monotonic(), list[dict[str, Any]]()
    while (passed_s := time.monotonic() - started_at) < seconds:
        readings.append({"at_s": round(passed_s), **describe_process(server.process.pid)})
        if len(readings) % 12 == 0:
            print(readings[-1], file=sys.stderr, flush=True)
        time.sleep(min(5.0, seconds / 20))
    for client in clients:
        client.end()
    accounts = [stream.end() for stream in good]
    wait_settled(server.url, 0)
    time.sleep(1.0)
    ended: Counter[str] = Counter()
    for client in clients:
        ended.update(client.ended)
    return {
        "seconds": seconds,
        "streams ended by": dict(ended),
        "good": accounts,
        "memory growth": round(measure_growth(readings), 4),
        "readings": readings,
        **describe_service(server),
    }


def measure_growth(readings: list[dict[str, Any]]) -> float:
    """Of the service's resident memory: the last quarter's mean over the second quarter's, less 1."""
    quarter = len(readings) // 4
    early = np.mean([reading["rss_mb"] for reading in readings[quarter : 2 * quarter]])
    late = np.mean([reading["rss_mb"] for reading in readings[-quarter:]])
    return float(late / early - 1)


def find_faults(account: dict[str, Any]) -> list[str]:
    """What must not be, in words."""
    faults = find_service_faults(account)
    if account["memory growth"] >= MOST_GROWTH:
        faults.append(f"memory grew by {account['memory growth']:.1%} after the warm-up")
    for stream in account["good"]:
        accounted = stream["answered"] + stream["skipped"] + sum(stream["dropped"].values())
        if stream["wrong"] or accounted != stream["pushed"]:
            faults.append(f"a good stream lost frames or got wrong masks: {stream}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--leak", action="store_true", help="serve with a deliberate leak, which must be found"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    account = run(arguments.seconds, arguments.seed, arguments.leak)
    faults = find_faults(account)
    report(account, faults, arguments.json)
    if arguments.leak:
        return 0 if any("memory grew" in fault for fault in faults) else 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
