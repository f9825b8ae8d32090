"""A card that a user wrote is read strictly, and every mistake in it is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model_export.foreign_card import GUIDE, ForeignCard, ForeignInput, ForeignOutput
from service.contract.model_card import ClassInfo, DataSource, InputSize
from service.errors import DataError
from tests.model_export.foreign_networks import IMAGENET, LOGITS, SIZE, write_card

SIGMOID = 'kind = "sigmoid logits"\nthreshold = 0.5'
DATA = '\n[[training_data]]\nname = "ours"\nlicence = "not public"\nframes = 7\nuse = "train"\n'
MEAN = "divide_by = 255\nmean = [0.5, 0.5, 0.5]\nstd = [0.2, 0.2, 0.2]"


def load(folder: Path, old: str = "", new: str = "", **parts: str) -> ForeignCard:
    """The usual card with `old` replaced by `new`."""
    path = write_card(folder / "card.toml", **parts)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return ForeignCard.load(path)


def test_everything_a_user_writes_reaches_the_bundles_card(tmp_path: Path) -> None:
    extra = 'version = "2"\nnetwork = "U-Net"\nmethod = "supervised"\nfit = "stretch"\nlimits = ["No smoke."]'
    card = load(tmp_path, 'version = "2"', extra, output=LOGITS + DATA).draft(SIZE, 12, has_confidence=True)
    assert (card.name, card.version, card.licence, card.fit) == ("theirs", "2", "MIT", "stretch")
    assert (card.network, card.method, card.parameters) == ("U-Net", "supervised", 12)
    assert card.classes[2] == ClassInfo(id=2, name="class 2", colour=(2, 0, 0))
    assert card.training_data == (DataSource(name="ours", licence="not public", frames=7, use="train"),)
    assert (card.outputs, card.limits, card.input_size) == (("mask", "confidence"), ("No smoke.",), SIZE)
    assert card.intended_use == "Research use only. Not a medical device."


def test_sigmoids_have_a_channel_less_than_there_are_classes(tmp_path: Path) -> None:
    assert load(tmp_path).channels == 3
    assert load(tmp_path, output=SIGMOID).channels == 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('licence = "MIT"', "", "licence is missing.*docs/wrap.md"),
        ('licence = "MIT"', 'license = "MIT"', "unknown key 'license'.*Did you mean 'licence'"),
        ('name = "theirs"', 'name = ""', "name is ''"),
        ("channels", "channel", "unknown key 'input.channel'.*Did you mean 'channels'"),
        ('"rgb"', '"grb"', r"input.channels is 'grb': Input should be 'rgb' or 'bgr'"),
        ("height = 96", "height = 8", r"input.size.height is 8"),
        ("height = 96", "hight = 96", r"unknown key 'input.size.hight'.*'height'"),
        ('"imagenet"', '"imagenette"', "input.normalise is 'imagenette'"),
        ('normalise = "imagenet"', "", "input.divide_by is missing.*what the network was trained with"),
        ('normalise = "imagenet"', MEAN.replace("divide_by = 255", ""), "input.divide_by is missing"),
        ('normalise = "imagenet"', MEAN.replace("0.2, 0.2, 0.2", "0.2, 0, 0.2"), r"input.std.1 is 0"),
        ('normalise = "imagenet"', MEAN.replace("0.2, 0.2, 0.2", "0.2"), "input.std.* is"),
        ('normalise = "imagenet"', MEAN.replace("255", "0"), "input.divide_by is 0"),
        (
            'normalise = "imagenet"',
            'normalise = "z-score"\n' + MEAN,
            "input.normalise and input.divide_by are both given.*Remove divide_by",
        ),
        ('kind = "logits"', 'kind = "logit"', "output.kind is 'logit'"),
        ('kind = "logits"', 'kind = "logits"\nthreshold = 0.5', "output.threshold is given.*Remove it"),
        ('kind = "logits"', 'kind = "sigmoid logits"', "output.threshold is missing.*often 0.5"),
        ('kind = "logits"', SIGMOID.replace("0.5", "1.0"), r"output.threshold is 1.0"),
        ("colour = [1, 0, 0]", "colour = [256, 0, 0]", r"classes.1.colour.0 is 256"),
        ("colour = [1, 0, 0]", "color = [1, 0, 0]", "unknown key 'classes.1.color'.*'colour'"),
        ("[input]", "input]", "is not valid TOML: .*Mend the line"),
        ("[input]", "[inputs]", "unknown key 'inputs'.*'input'"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        load(tmp_path, old, new)


def test_one_class_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes is .* at least 2"):
        ForeignCard.load(write_card(tmp_path / "card.toml", classes=1))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not valid TOML"):
        ForeignCard.load(tmp_path / "card.toml")


def test_the_size_may_be_left_to_the_model(tmp_path: Path) -> None:
    assert load(tmp_path).input.size == InputSize(height=96, width=160)
    assert load(tmp_path, given=IMAGENET.partition("\n")[2]).input.size is None


def test_the_card_of_the_guide_is_one(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / GUIDE).read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "card.toml").write_text(text, encoding="utf-8")
    assert ForeignCard.load(tmp_path / "card.toml").input.scaling is not None


def test_the_guide_names_every_key() -> None:
    guide = (Path(__file__).parents[2] / GUIDE).read_text(encoding="utf-8")
    top = set(ForeignCard.model_fields) - {"input", "output"}
    keys = [f"input.{key}" for key in ForeignInput.model_fields]
    keys += [f"output.{key}" for key in ForeignOutput.model_fields]
    assert [key for key in (*top, *keys) if f"`{key}`" not in guide and f"`[[{key}]]`" not in guide] == []
