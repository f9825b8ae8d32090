"""A bitstream that changes its form in mid-stream: pixel format, range, interlacing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from service.contract.bundle import open_bundle
from service.pipeline.latest_frames import Mode
from service.streams.decoded_video import StreamState
from tests.bitstreams import encode_codes
from tests.service.pipeline_rig import Rig, running_rigs
from tests.service.pushed_units import codes, push_and_collect


@pytest.fixture
def make_rig(small_bundle: Path) -> Iterator[Callable[..., Rig]]:
    with running_rigs(open_bundle(small_bundle)) as make:
        yield make


FORMS: dict[str, list[dict[str, Any]]] = {
    "h264": [
        {}, {"pixels": "yuv444p"}, {"is_interlaced": True}, {"pixels": "yuvj420p"}, {"pixels": "yuv422p10le"},
        {"pixels": "gray"}, {},
    ],
    "hevc": [{}, {"pixels": "yuv444p"}, {"pixels": "yuv420p10le"}, {"pixels": "gray"}, {}],
}  # fmt: skip


@pytest.mark.parametrize("codec", FORMS)
def test_pixel_format_range_and_interlacing_may_change_in_mid_stream(
    make_rig: Callable[..., Rig], codec: str
) -> None:
    rig = make_rig()
    stream, mailbox = rig.open(Mode.EVERY, codec)
    units: list[bytes] = []
    for number, form in enumerate(FORMS[codec]):
        part = encode_codes(range(5 * number, 5 * number + 5), codec, keys_every=5, **form)
        assert len(part) == 5
        units += part
    answers = push_and_collect(rig, stream, mailbox, units, len(units))
    assert codes(answers) == list(range(len(units)))
    assert [state for state, _ in rig.states] == [StreamState.RUNNING], "no decoder was lost"
    assert stream.ledger.dropped == {}


def test_interlaced_units_are_interlaced() -> None:
    """Or the test above would prove nothing."""
    for is_interlaced in (True, False):
        context = av.CodecContext.create("h264", "r")
        frames = context.decode(av.Packet(encode_codes([1], is_interlaced=is_interlaced)[0]))
        frames += context.decode(None)
        assert [frame.interlaced_frame for frame in frames] == [is_interlaced]
