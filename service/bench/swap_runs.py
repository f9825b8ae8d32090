"""Scenario `swap`: the model is changed again and again under live streams, and what they feel of it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from service.bench.accounts import find_gaps
from service.bench.child_process import Child
from service.bench.material import make_material
from service.bench.records import PushJob, PushResult, StreamRecord
from service.bench.running_service import start_service
from service.bench.scenarios import StreamSpec
from service.bench.service_metrics import scrape, scrape_settled
from service.contract.bundle import open_bundle, save_card
from service.credentials import Credentials
from service.errors import StreamError
from service.push import summarize

_STREAMS = 4
_BEGINS_IN_S = 2.5
_FIRST_S, _EVERY_S = 6.0, 8.0
_AFTER_S = 1.0  # what a change leaves behind belongs neither to it nor to the quiet time
_GRACE_S = 60.0
_TIMEOUT_S = 150.0

Span = tuple[float, float]


def measure_swaps(
    bundle: Path, backend: str, video: Path | None, spec: StreamSpec, seconds: float, rounds: int
) -> dict[str, Any]:
    """Four streams, `rounds` times `seconds`; every 8 s the bundle gives way to a copy of itself, or comes back.

    Raises StreamError when a change is refused.
    """
    payloads = tuple(make_material(spec, video))
    with TemporaryDirectory() as folder:
        _copy_with_another_card(bundle, Path(folder) / "again")
        settings = {"SURGSEG_BUNDLES": folder}
        with start_service(bundle, backend, _STREAMS, settings) as service:
            runs = [_measure(service.url, spec, payloads, seconds) for _ in range(rounds)]
    return {"material": spec.describe(), "streams": _STREAMS, "runs": runs}


def split_latencies(
    records: Sequence[StreamRecord], changes: Sequence[Span]
) -> tuple[list[float], list[float]]:
    """Arrival to encoded in ms of the frames pushed while nothing changed, and of those pushed during a change.

    Frames before the first change count from two seconds on.
    """
    quiet_ms, changing_ms = [], []
    for record in records:
        for at_s, encoded_ms in zip(record.pushed_at_s, record.encoded_ms, strict=True):
            if any(begin_s <= at_s <= end_s for begin_s, end_s in changes):
                changing_ms.append(encoded_ms)
            elif at_s >= 2.0 and not any(begin_s <= at_s <= end_s + _AFTER_S for begin_s, end_s in changes):
                quiet_ms.append(encoded_ms)
    return quiet_ms, changing_ms


def _copy_with_another_card(bundle: Path, copy: Path) -> None:
    shutil.copytree(bundle, copy)
    card = open_bundle(bundle).card
    save_card(card.model_copy(update={"version": f"{card.version}-again"}), copy)


def _measure(url: str, spec: StreamSpec, payloads: tuple[bytes, ...], seconds: float) -> dict[str, Any]:
    specs = (spec,) * _STREAMS
    job = PushJob(url, specs, (payloads,), (0,) * _STREAMS, "constant", _BEGINS_IN_S, seconds, 0.0, seed=1)
    nobody = Credentials()
    before = scrape(url, nobody)
    began_at = time.monotonic() + _BEGINS_IN_S
    changes: list[Span] = []
    failures: list[str] = []
    changer = threading.Thread(target=_change, args=(url, began_at, seconds, changes, failures))
    with Child("service.bench.pusher", job) as child:
        changer.start()
        result: PushResult = child.wait(seconds + _GRACE_S)
    changer.join()
    if failures:
        raise StreamError(failures[0], "a change of the model", "Read the service's log.")
    spans = [(begin - result.began_at, end - result.began_at) for begin, end in changes]
    quiet_ms, changing_ms = split_latencies(result.records, spans)
    quiet, changing = summarize(quiet_ms), summarize(changing_ms)
    return {
        "seconds": seconds,
        "changes_s": [end_s - begin_s for begin_s, end_s in spans],
        "ended_by_the_service": sum(bool(record.ended) for record in result.records),
        "gaps": find_gaps(result.records, scrape_settled(url, nobody, before)),
        "quiet_ms": quiet,
        "changing_ms": changing,
        "of_quiet": {name: changing[name] / quiet[name] for name in quiet},
        "client_late_ms": summarize([late for record in result.records for late in record.late_ms]),
    }


def _change(url: str, began_at: float, seconds: float, changes: list[Span], failures: list[str]) -> None:
    due_s, is_back = _FIRST_S, True
    with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
        while due_s < seconds - _AFTER_S and not failures:
            time.sleep(max(0.0, began_at + due_s - time.monotonic()))
            begin = time.monotonic()
            if is_back:
                answer = client.post("/v1/model", json={"bundle": "again"})
            else:
                answer = client.post("/v1/model/rollback")
            changes.append((begin, time.monotonic()))
            if answer.is_error:
                failures.append(answer.text)
            due_s, is_back = due_s + _EVERY_S, not is_back
