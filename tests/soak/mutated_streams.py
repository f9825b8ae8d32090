"""Thousands of mutated streams against a real service, beside two good ones: `python -m tests.soak.mutated_streams`.

Passes when the service lives, both good streams got the right mask for every frame, every frame received has one
fate, and no process, descriptor or memory was left behind.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.client import Client
from service.wire import PushedFrame, pack_frame
from tests.bitstreams import encode_codes, read_code
from tests.conftest import start_server, write_small_bundle
from tests.soak.accounts import describe_process, describe_service, find_service_faults, report, wait_settled
from tests.soak.mutations import MUTATIONS

_GOOD_FPS = 10.0
_GOOD_CODES = 200
_SETTLE_S = 0.15


class GoodStream:
    """Pushes pictures that tell their number, slowly enough for every one to be answered, and checks each mask."""

    def __init__(self, url: str, codec: str) -> None:
        self._url = url
        self._units = encode_codes([number % 256 for number in range(_GOOD_CODES)], codec)  # type: ignore[arg-type]
        self._codec = codec
        self._ends = threading.Event()
        self.pushed = self.answered = self.wrong = self.skipped = 0
        self.dropped: dict[str, int] = {}
        self.latency_ms: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to push."""
        self._thread.start()

    def _run(self) -> None:
        with Client(self._url) as client, client.stream(codec=self._codec, mask="rle") as stream:  # type: ignore[arg-type]
            while not self._ends.is_set():
                number = self.pushed % len(self._units)
                stream.push(self._units[number], number + 1)
                self.pushed += 1
                time.sleep(
                    1 / _GOOD_FPS
                )  # never two at once, also after a pause: this stream must not outrun anything
                for message in stream.arrived():
                    self._check(message)
            for message in stream.finish():
                self._check(message)

    def _check(self, message: Any) -> None:
        self.answered += 1
        self.wrong += read_code(message.mask_hw) != (message.captured_at_us - 1) % 256
        self.dropped = dict(message.dropped)
        self.skipped = message.skipped
        self.latency_ms.append(sum(message.latency_ms.values()))

    def end(self) -> dict[str, Any]:
        """Stop, wait for the last masks, and give the account."""
        self._ends.set()
        self._thread.join(30)
        ranked = sorted(self.latency_ms)
        return {
            "pushed": self.pushed,
            "answered": self.answered,
            "wrong": self.wrong,
            "skipped": self.skipped,
            "dropped": self.dropped,
            "p99_ms": round(ranked[int(len(ranked) * 0.99)], 1) if ranked else None,
        }


def push_mutated(ws_url: str, seed: int, originals: dict[str, list[bytes]]) -> str:
    """One stream of mutated units; gives what kind it was."""
    source = random.Random(seed)
    codec = source.choice(list(originals))
    kind = source.choice(list(MUTATIONS))
    units = MUTATIONS[kind](originals[codec], source, codec)
    try:
        with connect(f"{ws_url}/v1/stream?codec={codec}&mask=rle", max_size=2**25) as socket:
            for number, unit in enumerate(units):
                socket.send(pack_frame(PushedFrame(number + 1, unit or b"\0")))
            time.sleep(_SETTLE_S)
    except ConnectionClosed:
        pass  # the stream was ended with a reason, as it may be
    return kind


def run(count: int, seed: int, at_once: int) -> dict[str, Any]:
    """Push `count` mutated streams and give the whole account."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_small_bundle(bundle, 96, 160)
        server = start_server(
            "--port",
            "0",
            "--bundle",
            str(bundle),
            SURGSEG_MAX_STREAMS=str(at_once * 4 + 8),
            SURGSEG_ADMISSION="off",
        )
        try:
            return _measure(server, count, seed, at_once)
        finally:
            server.stop()


def _measure(server: Any, count: int, seed: int, at_once: int) -> dict[str, Any]:
    originals = {codec: encode_codes(range(8), codec, 160, 96, keys_every=4) for codec in ("h264", "hevc")}
    good = [GoodStream(server.url, codec) for codec in ("h264", "hevc")]
    for stream in good:
        stream.start()
    kinds: Counter[str] = Counter()
    readings: list[dict[str, int]] = []
    started_at = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        for first in range(0, count, 500):
            numbers = range(first, min(count, first + 500))
            kinds.update(
                pool.map(lambda n: push_mutated(server.ws_url, seed * 1_000_000 + n, originals), numbers)
            )
            wait_settled(server.url, len(good))
            readings.append({"streams": numbers[-1] + 1, **describe_process(server.process.pid)})
            print(f"{time.monotonic() - started_at:7.0f} s  {readings[-1]}", file=sys.stderr, flush=True)
    accounts = [stream.end() for stream in good]
    wait_settled(server.url, 0)
    time.sleep(0.5)
    return {
        "mutated": dict(kinds),
        "seconds": round(time.monotonic() - started_at),
        "good": accounts,
        "readings": readings,
        **describe_service(server),
        "restarts": sum("restart" in line for line in server.output),
    }


def find_faults(account: dict[str, Any]) -> list[str]:
    """What must not be, in words."""
    faults = find_service_faults(account)
    for name, stream in zip(("h264", "hevc"), account["good"], strict=True):
        if stream["wrong"] or stream["answered"] != stream["pushed"]:
            faults.append(f"the good {name} stream lost frames or got wrong masks: {stream}")
    first, last = account["readings"][0], account["readings"][-1]
    if last["descriptors"] > first["descriptors"] + 2 or last["threads"] > first["threads"] + 2:
        faults.append(f"descriptors or threads are left: {first}, {last}")
    if len(account["readings"]) > 4 and last["rss_mb"] > account["readings"][1]["rss_mb"] * 1.05:
        faults.append(f"memory grew from {account['readings'][1]['rss_mb']} to {last['rss_mb']} MB")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    account = run(arguments.count, arguments.seed, arguments.at_once)
    faults = find_faults(account)
    report(account, faults, arguments.json)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
