"""What a decoder says is unpacked or refused, and never believed."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.model_card import InputSize
from service.frames import DropReason
from service.streams.canvases import Canvases, create_memory
from service.streams.decoder_messages import (
    DROP,
    ENDED,
    FAILED,
    FRAME,
    OPENED,
    TAKEN,
    DropMessage,
    Event,
    FrameMessage,
    Job,
    pack_release,
    pack_unit,
    unpack_from_decoder,
    unpack_release,
    unpack_unit,
)

FRAME_MESSAGE = FrameMessage(7, 2, 4, 1920, 1080, 0.25, 1.0, 2.0, 3.0, 0.004)


@pytest.mark.parametrize(
    "message",
    [
        FRAME_MESSAGE,
        replace(FRAME_MESSAGE, pts_s=None),
        DropMessage(DropReason.BEHIND, (1, 2, 2**60)),
        DropMessage(DropReason.UNDECODABLE, ()),
        Event(FAILED, {"found": "x"}),
    ],
)
def test_messages_come_back_as_they_went(message: FrameMessage | DropMessage | Event) -> None:
    assert unpack_from_decoder(message.pack()) == message


def test_what_the_service_says_comes_back_as_it_went() -> None:
    assert unpack_unit(pack_unit(9, 1.5, True, b"data")) == (9, 1.5, True, b"data")
    assert unpack_release(pack_release(3)) == 3
    job = Job(224, 384, "letterbox", 10, 20, 4, behind_s=0.1, codec="hevc")
    assert Job.unpack(job.pack()) == job


@pytest.mark.parametrize(
    "frame",
    [
        replace(FRAME_MESSAGE, width=0),
        replace(FRAME_MESSAGE, height=70_000),
        replace(FRAME_MESSAGE, arrived_at=float("inf")),
        replace(FRAME_MESSAGE, cost_s=float("nan")),
    ],
)
def test_a_frame_that_cannot_be_is_refused(frame: FrameMessage) -> None:
    with pytest.raises(ValueError, match="malformed"):
        unpack_from_decoder(frame.pack())


@given(
    kind=st.sampled_from([FRAME, DROP, TAKEN, OPENED, FAILED, ENDED, b"", b"?"]), body=st.binary(max_size=100)
)
def test_any_bytes_give_a_message_or_a_value_error(kind: bytes, body: bytes) -> None:
    with contextlib.suppress(ValueError):
        unpack_from_decoder(kind + body)


def test_a_slot_gives_the_picture_that_was_told_of_and_no_other() -> None:
    memory = create_memory()
    size = InputSize(height=32, width=64)
    writer, reader = Canvases(memory, 2, size), Canvases(memory, 2, size)
    os.close(memory)
    writer.begin(1)[...] = 9
    generation = writer.finish(1)
    copied = reader.copy(1, generation)
    assert copied is not None
    assert copied.shape == (32, 64, 3)
    assert np.all(copied == 9)
    assert reader.copy(0, generation) is None
    assert reader.copy(5, generation) is None
    writer.begin(1)[0] = 8  # half of the next picture
    assert reader.copy(1, generation) is None
    assert writer.finish(1) != generation
    assert np.all(copied == 9)
