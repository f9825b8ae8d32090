"""Numbers in an address are plain decimal ones, whatever else Python would take."""

from __future__ import annotations

import pytest

from service.access.tokens import parse_limit
from service.api.numbers import read_number
from service.errors import InvalidRequestError

ODD = [
    "",
    " 5",
    "5 ",
    "+5",
    "-5",
    "1_0",
    "٥",
    "５",
    "5e0",
    "0x5",
    "nan",
    "inf",
    "5.",
    ".5",
    "5,0",
    "5\n",
    "9" * 5000,
]


@pytest.mark.parametrize(
    ("text", "least", "value"),
    [
        ("5", 1, 5),
        ("05", 1, 5),
        ("1", 1, 1),
        ("9", 1, 9),
        ("0.5", 0.1, 0.5),
        ("5", 0.1, 5),
        ("8.99", 0.1, 8.99),
    ],
)
def test_plain_ones_are_read(text: str, least: float, value: float) -> None:
    assert read_number({"n": text}, "n", least, 9) == value
    assert read_number({}, "n", least, 9) is None


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("least", [1, 0.1])
def test_others_are_refused_and_not_repeated_at_length(text: str, least: float) -> None:
    with pytest.raises(InvalidRequestError, match="plain digits") as caught:
        read_number({"n": text}, "n", least, 9)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["0", "10", "5.0", "0.99"])
def test_whole_ones_and_limits(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        read_number({"n": text}, "n", 1, 9)


def test_the_limits_of_a_token_are_plain_as_well() -> None:
    assert parse_limit("streams", "5") == 5
    with pytest.raises(ValueError, match="no number"):
        parse_limit("streams", "٥")
