"""What a pulled stream may be opened from: nothing but what the operator allows, and no password where people look."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import ForbiddenError, InvalidRequestError, StreamError
from service.streams.pull_targets import PullRules

ANY_HOST = PullRules({"rtsp", "udp"}, {"*"}, None)


@pytest.fixture
def rules(tmp_path: Path) -> PullRules:
    """Files of a folder with `clip.mp4`, `below/clip 2.mp4`, and links to inside and outside."""
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    (folder / "clip.mp4").write_bytes(b"x")
    (folder / "below" / "clip 2.mp4").write_bytes(b"x")
    (folder / "inside.mp4").symlink_to(folder / "clip.mp4")
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (folder / "outside.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "up").symlink_to(tmp_path)
    return PullRules({"rtsp"}, {"10.0.0.7", "camera", "10.0.7.0/24"}, folder)


@pytest.mark.parametrize(
    ("url", "shown", "opened"),
    [
        ("rtsp://camera/1", "rtsp://camera/1", "rtsp://camera/1"),
        ("rtsp://Camera:8554/a/b?x=1&y=2", "rtsp://camera:8554/a/b?***", "rtsp://camera:8554/a/b?x=1&y=2"),
        ("rtsp://u:p%40ss@camera/1", "rtsp://***@camera/1", "rtsp://u:p%40ss@camera/1"),
        (
            "rtsp://token@[2001:DB8::1]:554/1",
            "rtsp://***@[2001:db8::1]:554/1",
            "rtsp://token@[2001:db8::1]:554/1",
        ),
        ("udp://239.1.2.3:5000", "udp://239.1.2.3:5000", "udp://239.1.2.3:5000"),
        ("udp://@:5000", "udp://:5000", "udp://:5000"),
    ],
)
def test_an_address_is_put_together_again_and_its_secrets_are_hidden(
    url: str, shown: str, opened: str
) -> None:
    target = ANY_HOST.admit(url, "tcp")
    assert (target.shown, target.url, target.is_file) == (shown, opened, False)
    assert "p%40ss" not in repr(target)


def test_ffmpeg_may_use_the_protocols_of_the_kind_of_address_only() -> None:
    assert ANY_HOST.admit("rtsp://camera/1", "udp").options["rtsp_transport"] == "udp"
    assert ANY_HOST.admit("rtsp://camera/1", "tcp").options["protocol_whitelist"] == "rtp,tcp,udp"
    assert ANY_HOST.admit("udp://0.0.0.0:5000", "tcp").options["protocol_whitelist"] == "udp"


def test_a_named_address_of_this_machine_is_the_only_one_listened_on() -> None:
    assert ANY_HOST.admit("udp://127.0.0.1:5000", "tcp").options["localaddr"] == "127.0.0.1"
    for everywhere in ("udp://0.0.0.0:5000", "udp://239.1.2.3:5000", "udp://:5000"):
        assert "localaddr" not in ANY_HOST.admit(everywhere, "tcp").options


@pytest.mark.parametrize(
    "url",
    [
        "",
        "camera/1",
        "http://camera/1.mp4",
        "concat:a|b",
        "rtsp:///1",
        "rtsp://camera:port/1",
        "rtsp://camera:99999/1",
        "rtsp://good\\@evil/1",
        "rtsp://camera/a b",
        "rtsp://camera/\n1",
        "rtsp://cämera/1",
        "rtsp://[::1/1",
        "rtsp://camera/" + "a" * 3000,
        "udp://127.0.0.1",
        "udp://127.0.0.1:5000/path",
        "udp://127.0.0.1:5000?localaddr=10.0.0.1",
    ],
)
def test_what_is_no_such_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        ANY_HOST.admit(url, "tcp")


def test_an_unknown_transport_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="sctp"):
        ANY_HOST.admit("rtsp://camera/1", "sctp")


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://10.0.0.8/1",
        "rtsp://camera.evil/1",
        "rtsp://camera@evil/1",
        "udp://10.0.0.7:5000",
        "rtsps://camera/1",
        "rtsp://169.254.169.254/latest/meta-data",
        "rtsp://[fe80::1]/1",
        "rtsp://127.0.0.1/1",
        "rtsp://localhost/1",
        "rtsp://2130706433/1",  # 127.0.0.1 as a number
        "rtsp://10.0.8.1/1",
        "udp://:5000",
    ],
)
def test_other_hosts_and_schemes_are_forbidden(rules: PullRules, url: str) -> None:
    assert rules.admit("rtsp://user@camera/1", "tcp").shown == "rtsp://***@camera/1"
    assert rules.admit("rtsp://10.0.7.200/1", "tcp").shown == "rtsp://10.0.7.200/1"
    with pytest.raises(ForbiddenError):
        rules.admit(url, "tcp")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("file:clip.mp4", "file:clip.mp4"),
        ("file:below/../clip.mp4", "file:clip.mp4"),
        ("file:below/clip%202.mp4", "file:below/clip 2.mp4"),
        ("file:inside.mp4", "file:clip.mp4"),
    ],
)
def test_files_of_the_folder_may_be_opened(rules: PullRules, url: str, shown: str) -> None:
    target = rules.admit(url, "tcp")
    assert (target.shown, target.is_file) == (shown, True)
    assert Path(target.url).is_file()
    whole = rules.admit(f"file://{Path(target.url).as_posix().replace(' ', '%20')}", "tcp")
    assert whole == target


@pytest.mark.parametrize(
    "url",
    [
        "file:../secret.mp4",
        "file:%2e%2e/secret.mp4",
        "file:outside.mp4",
        "file:up/secret.mp4",
        "file:///etc/passwd",
        "file:../missing",
    ],
)
def test_files_elsewhere_are_forbidden_whether_they_exist_or_not(rules: PullRules, url: str) -> None:
    with pytest.raises(ForbiddenError, match="outside"):
        rules.admit(url, "tcp")


def test_a_missing_file_a_folder_and_a_host_in_a_file_s_address_are_refused(rules: PullRules) -> None:
    for url in ("file:missing.mp4", "file:below"):
        with pytest.raises(StreamError, match="no file"):
            rules.admit(url, "tcp")
    for url in ("file:", "file://host/clip.mp4", "file:clip.mp4?x", "file:clip%00.mp4"):
        with pytest.raises(InvalidRequestError):
            rules.admit(url, "tcp")


def test_without_a_folder_no_file_may_be_opened() -> None:
    with pytest.raises(ForbiddenError, match="Files are not allowed"):
        ANY_HOST.admit("file:clip.mp4", "tcp")


def test_a_name_that_no_file_system_takes_is_no_address(rules: PullRules) -> None:
    with pytest.raises(InvalidRequestError, match="no address of a file"):
        rules.admit("file:" + "a" * 300, "tcp")
