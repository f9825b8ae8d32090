from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import InvalidRequestError
from service.settings import load_settings


def test_the_defaults_are_local_and_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SURGSEG_HOST", "SURGSEG_PORT", "SURGSEG_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    settings = load_settings()
    assert (settings.host, settings.port, settings.bundle) == ("127.0.0.1", 8000, None)


def test_the_environment_is_read_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGSEG_PORT", "9001")
    monkeypatch.setenv("SURGSEG_BUNDLE", "/models/a")
    monkeypatch.setenv("SURGSEG_BATCH_SIZES", "4, 1,2,4")
    settings = load_settings(port=9002, bundle=None)
    assert (settings.port, settings.bundle) == (9002, Path("/models/a"))
    assert settings.batch_sizes == (1, 2, 4)


def test_batches_hold_up_to_one_frame_for_each_thread() -> None:
    assert load_settings(threads=3).batch_sizes == (1, 2, 3)
    assert load_settings(threads=1).batch_sizes == (1,)
    assert load_settings(threads=64).batch_sizes[-1] < 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("MAX_STREAMS", "0"),
        ("DEADLINE_S", "-1"),
        ("BATCH_SIZES", "1,two"),
        ("BATCH_SIZES", ""),
        ("LOG_LEVEL", "loud"),
        ("SCENE", "perhaps"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"SURGSEG_{name}", value)
    with pytest.raises(InvalidRequestError, match=f"SURGSEG_{name}"):
        load_settings()


def test_what_may_be_pulled_is_a_list_and_an_empty_one_allows_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().pull_schemes == {"rtsp", "udp"}
    assert load_settings().pull_hosts == set()
    monkeypatch.setenv("SURGSEG_PULL_SCHEMES", "")
    monkeypatch.setenv("SURGSEG_PULL_HOSTS", "10.0.0.7, Camera-2")
    assert load_settings().pull_schemes == set()
    assert load_settings().pull_hosts == {"10.0.0.7", "camera-2"}
    monkeypatch.setenv("SURGSEG_PULL_HOSTS", "10.0.7.0/33")
    with pytest.raises(InvalidRequestError, match="SURGSEG_PULL_HOSTS"):
        load_settings()
    monkeypatch.setenv("SURGSEG_PULL_HOSTS", "10.0.7.0/24,*")
    monkeypatch.setenv("SURGSEG_PULL_SCHEMES", "rtsp,http")
    with pytest.raises(InvalidRequestError, match="SURGSEG_PULL_SCHEMES"):
        load_settings()
