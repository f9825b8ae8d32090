"""What a picture costs here, measured in a process of its own."""

from __future__ import annotations

import threading

from service.contract.model_card import InputSize
from service.streams.calibration import Calibration

SIZE = InputSize(height=96, width=160)


def test_every_codec_gets_a_cost_and_a_png_costs_more_than_a_jpeg() -> None:
    costs = {cost.codec: cost for cost in Calibration(SIZE, "letterbox").measure()}
    assert {"jpeg", "png", "h264", "hevc"} == set(costs)
    assert all(0 < cost.seconds < 1 and cost.pixels == 1280 * 720 for cost in costs.values())
    assert costs["jpeg"].seconds < costs["png"].seconds


def test_it_ends_when_it_is_stopped() -> None:
    calibration = Calibration(SIZE, "letterbox")
    found: list[str] = []

    def measure() -> None:
        found.extend(cost.codec for cost in calibration.measure())

    thread = threading.Thread(target=measure)
    thread.start()
    calibration.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert "hevc" not in found
    assert list(calibration.measure()) == []
