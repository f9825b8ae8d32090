"""A stream of access units through a pipeline: pushed as a client does, its masks read as numbers."""

from __future__ import annotations

import threading

from service.contract.masks import decode_mask
from service.pipeline.pushed_stream import PushedStream
from service.pipeline.subscription import Answer, Subscription
from tests.bitstreams import read_code
from tests.service.pipeline_rig import Rig, eventually


def collect(rig: Rig, mailbox: Subscription, count: int) -> list[Answer]:
    answers: list[Answer] = []

    def has_enough() -> bool:
        while (answer := mailbox.take()) is not None:
            answers.append(answer)
        return len(answers) >= count

    eventually(has_enough)
    return answers


def push_and_collect(
    rig: Rig, stream: PushedStream, mailbox: Subscription, units: list[bytes], count: int
) -> list[Answer]:
    """Push in a thread of its own, as a client does: a lossless stream holds back who does not read."""

    def push() -> None:
        for number, unit in enumerate(units):
            rig.push_lossless(stream, unit, number + 1)

    pusher = threading.Thread(target=push, daemon=True)
    pusher.start()
    answers = collect(rig, mailbox, count)
    while pusher.is_alive():
        answers += collect(rig, mailbox, 0)
        pusher.join(0.01)
    return answers


def codes(answers: list[Answer]) -> list[int]:
    return [read_code(decode_mask(answer.payload, "png")) for answer in answers]
