"""Two real services behind a real nginx, ten streams, and a replica that goes: killed, or asked to end."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.client import Client
from service.wire import Mode, encode_picture
from tests.conftest import Server
from tests.deploy.balancer import NGINX, Balancer, write_configuration

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs Debian's nginx")

STREAMS = 10
FPS = 8.0
PICTURES = [encode_picture(np.full((36, 64, 3), level, np.uint8), "png") for level in (0, 255)]


class Pusher(threading.Thread):
    """One stream through the balancer: frame n is bright where n is odd, and its stamp is n + 1."""

    def __init__(self, url: str, mode: Mode) -> None:
        super().__init__(daemon=True)
        self.mode = mode
        self.pushed = 0
        self.answers: list[tuple[int, int, bool, float]] = []
        self.dropped = 0  # by a cause that the service names
        self.failure: BaseException | None = None
        self.is_done = threading.Event()
        self._client = Client(url)
        self.stream = self._client.stream(codec="png", mode=mode, max_gap_s=10.0)

    def run(self) -> None:
        try:
            with self._client, self.stream:
                while not self.is_done.wait(1 / FPS):
                    self.stream.push(PICTURES[self.pushed % 2], captured_at_us=self.pushed + 1)
                    self.pushed += 1
                    self._read(self.stream.arrived())
                self._read(self.stream.finish())
        except BaseException as error:  # noqa: BLE001 - judged by the test
            self.failure = error

    def _read(self, messages: Any) -> None:
        for message in messages:
            is_bright = bool(message.mask_hw.all())
            self.answers.append((message.captured_at_us, message.sequence, is_bright, message.arrived_at))
            self.dropped = sum(message.dropped.values()) + message.skipped


@pytest.fixture
def fleet(launch_server: Callable[..., Server], tmp_path: Path) -> Iterator[tuple[list[Server], str]]:
    settings = {"SURGSEG_ADMISSION": "0", "SURGSEG_THREADS": "1"}
    with ThreadPoolExecutor(2) as starters:
        replicas = list(starters.map(lambda _: launch_server(**settings), range(2)))
    balancer = Balancer(tmp_path, [replica.url.removeprefix("http://") for replica in replicas])
    yield replicas, balancer.url
    balancer.stop()


def count_streams(replica: Server) -> int:
    return len(httpx.get(f"{replica.url}/v1/streams").json())


def run_until_gone(fleet: tuple[list[Server], str], how: signal.Signals) -> tuple[list[Pusher], float]:
    """Ten streams, half of them lossless; one replica gets the signal in the middle. Gives them, and when it came."""
    (gone, stays), url = fleet
    pushers = [Pusher(url, "every" if number % 4 < 2 else "latest") for number in range(STREAMS)]
    for pusher in pushers:
        pusher.start()
    time.sleep(1.5)
    assert (count_streams(gone), count_streams(stays)) == (STREAMS / 2, STREAMS / 2), (
        "least_conn spreads them"
    )
    if how is signal.SIGKILL:
        gone.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # so that frames are under way, which nobody will answer
    signalled_at = time.monotonic()
    gone.process.send_signal(how)
    time.sleep(3.0)
    assert count_streams(stays) == STREAMS
    for pusher in pushers:
        pusher.is_done.set()
    for pusher in pushers:
        pusher.join(20)
        assert not pusher.is_alive()
        assert pusher.failure is None, pusher.failure
    return pushers, signalled_at


def check_account(pusher: Pusher) -> None:
    """Each answer is that of its own frame, none came twice, and each frame without one is told of."""
    stamps = [stamp for stamp, *_ in pusher.answers]
    assert len(set(stamps)) == len(stamps)
    assert stamps == sorted(stamps) == [sequence for _, sequence, *_ in pusher.answers]
    assert all(is_bright == (stamp % 2 == 0) for stamp, _, is_bright, _ in pusher.answers)
    unanswered = set(range(1, pusher.pushed + 1)) - set(stamps)
    told: set[int] = set()
    for gap in pusher.stream.gaps:
        if gap.loss.captured_at_us is not None:
            assert gap.loss.sequences == gap.loss.captured_at_us
            told |= set(range(gap.loss.captured_at_us[0], gap.loss.captured_at_us[1] + 1))
    assert unanswered >= told
    if pusher.mode == "every":
        assert unanswered == set()
    elif not pusher.stream.gaps:
        assert len(unanswered) == pusher.dropped, "what has no answer was dropped by a cause"
    else:
        assert len(unanswered) <= len(told) + pusher.dropped


def without_service_s(pusher: Pusher, signalled_at: float) -> float:
    """From the signal to the first answer that came after the gap."""
    resumed_at = pusher.stream.gaps[-1].resumed_at
    return min(arrived_at for *_, arrived_at in pusher.answers if arrived_at > resumed_at) - signalled_at


def longest_silence_s(pusher: Pusher) -> float:
    """The longest time between two answers."""
    arrivals = [arrived_at for *_, arrived_at in pusher.answers]
    return max(later - earlier for earlier, later in pairwise(arrivals))


@pytest.mark.slow
def test_when_a_replica_is_killed_every_stream_is_served_by_the_other_within_three_seconds(
    fleet: tuple[list[Server], str],
) -> None:
    pushers, signalled_at = run_until_gone(fleet, signal.SIGKILL)
    moved = [pusher for pusher in pushers if pusher.stream.gaps]
    assert len(moved) == STREAMS / 2, "only the streams of the replica that went have a gap"
    for pusher in pushers:
        check_account(pusher)
    gaps_s = [without_service_s(pusher, signalled_at) for pusher in moved]
    print("seconds without service", [round(gap_s, 2) for gap_s in sorted(gaps_s)])
    print(*(f"{pusher.mode}: {gap.describe()}" for pusher in moved for gap in pusher.stream.gaps), sep="\n")
    assert max(gaps_s) < 3.0
    assert all("lost" in gap.reason for pusher in moved for gap in pusher.stream.gaps)
    for pusher in moved:
        gap = pusher.stream.gaps[0]
        assert (gap.loss.frames > 0, gap.resent > 0) == (pusher.mode == "latest", pusher.mode == "every")


@pytest.mark.slow
def test_when_a_replica_is_asked_to_end_its_streams_move_and_no_frame_is_lost(
    fleet: tuple[list[Server], str],
) -> None:
    pushers, signalled_at = run_until_gone(fleet, signal.SIGTERM)
    assert fleet[0][0].process.wait(5.0) == 0
    moved = [pusher for pusher in pushers if pusher.stream.moves]
    assert len(moved) == STREAMS / 2, "only the streams of the replica that went have moved"
    for pusher in pushers:
        assert pusher.stream.gaps == []
        check_account(pusher)
    moves = [move for pusher in moved for move in pusher.stream.moves]
    assert len(moves) == len(moved)
    print("moved after", sorted(round(move.moved_at - signalled_at, 2) for move in moves), "s")
    print("longest silence of those", sorted(round(longest_silence_s(pusher), 2) for pusher in moved), "s")
    print(
        "and of the others",
        sorted(round(longest_silence_s(each), 2) for each in pushers if each not in moved),
    )
    print("live frames dropped by a cause", [pusher.dropped for pusher in moved if pusher.mode == "latest"])
    assert max(longest_silence_s(pusher) for pusher in moved) < 3.0
    assert all("shutting down" in move.reason for move in moves)


def test_the_shipped_configuration_is_one_that_nginx_takes(tmp_path: Path) -> None:
    path = write_configuration(tmp_path, 8000, ["127.0.0.1:8001", "127.0.0.1:8002"])
    assert NGINX is not None
    told = subprocess.run([NGINX, "-t", "-c", str(path), "-p", str(tmp_path)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "warn" not in told.stderr
