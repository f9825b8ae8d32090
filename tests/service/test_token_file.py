"""The file of tokens: written whole, one at a time, and read again when it changes."""

from __future__ import annotations

import logging
import stat
import threading
from pathlib import Path

import pytest

from service.__main__ import main
from service.access.scopes import Scope
from service.access.token_file import TokenFile, add_token, read_tokens, remove_token
from service.access.tokens import Token, find_token, hash_secret
from service.errors import InvalidRequestError


def make_token(name: str) -> Token:
    return Token(name, frozenset({Scope.PUSH}), hash_secret(name))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_a_new_file_is_its_owners_alone_and_one_that_exists_stays_as_it_was(path: Path) -> None:
    add_token(path, make_token("a"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    path.write_text("# room 3\n" + path.read_text())
    add_token(path, make_token("b"))
    remove_token(path, "a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_text() == f"# room 3\n{make_token('b').line()}\n"
    assert [found.name for found in path.parent.iterdir()] == ["tokens"]


def test_what_is_not_there_or_there_twice_is_refused_and_the_file_left_alone(path: Path) -> None:
    add_token(path, make_token("a"))
    before = path.read_bytes()
    with pytest.raises(InvalidRequestError, match="already"):
        add_token(path, make_token("a"))
    with pytest.raises(InvalidRequestError, match="no token of the name b"):
        remove_token(path, "b")
    path.write_text("broken\n")
    with pytest.raises(InvalidRequestError, match="Line 1"):
        add_token(path, make_token("c"))
    assert path.read_text() == "broken\n" != before.decode()


def test_tokens_that_are_made_at_the_same_time_are_all_kept(path: Path) -> None:
    names = [f"n{number}" for number in range(20)]
    threads = [threading.Thread(target=add_token, args=(path, make_token(name))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(token.name for token in read_tokens(path)) == sorted(names)


def test_a_change_is_seen_once_also_that_of_a_link(path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        add_token(tmp_path / name, make_token(name))
    path.symlink_to(tmp_path / "a")
    file = TokenFile(path)
    assert [token.name for token in file.read()] == ["a"]
    assert file.read_changed() is None
    path.unlink()
    path.symlink_to(tmp_path / "b")
    assert [token.name for token in file.read_changed() or ()] == ["b"]
    assert file.read_changed() is None
    path.unlink()
    with pytest.raises(InvalidRequestError, match="cannot be used"):
        file.read_changed()
    assert file.read_changed() is None
    path.symlink_to(tmp_path / "a")
    assert [token.name for token in file.read_changed() or ()] == ["a"]


def test_a_file_that_cannot_hold_tokens_is_named(path: Path, tmp_path: Path) -> None:
    for spoil in (lambda: path.write_bytes(b"\xff\xfe"), lambda: path.write_bytes(b"# \n" * 400_000)):
        spoil()
        with pytest.raises(InvalidRequestError, match="cannot be used"):
            read_tokens(path)
    with pytest.raises(InvalidRequestError, match="cannot be used"):
        read_tokens(tmp_path)
    with pytest.raises(InvalidRequestError, match="cannot be used"):
        add_token(tmp_path / "nowhere" / "tokens", make_token("a"))


def test_a_file_that_everybody_may_write_is_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_token(path, make_token("a"))
    with caplog.at_level(logging.WARNING):
        read_tokens(path)
        assert not caplog.records
        path.chmod(0o666)
        read_tokens(path)
    assert "everybody" in caplog.text


def test_the_command_makes_lists_and_revokes(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ["token", "new", "--file", str(path), "--name", "OR-3", "--scope", "push,view"]
    assert main([*made, "--expires", "2020-01-31", "--streams", "2", "--requests-per-s", "0.5"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret not in path.read_text()
    token = find_token(read_tokens(path), secret)
    assert token is not None
    assert (token.name, token.scopes) == ("OR-3", {Scope.PUSH, Scope.VIEW})
    monkeypatch.setenv("SURGSEG_TOKENS", str(path))
    assert main(["token", "list"]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith(f"OR-3 push,view sha256:{token.digest[:8]} expires=2020-01-31 ")
    assert listed.endswith("requests_per_s=0.5 streams=2 (expired)\n")
    assert main(["token", "revoke", "--name", "OR-3"]) == 0
    assert read_tokens(path) == ()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["new", "--scope", "push"], "no --name"),
        (["new", "--name", "a"], "no --scope"),
        (["new", "--name", "a b", "--scope", "push"], "--name"),
        (["new", "--name", "a", "--scope", "root"], "none of push, view, operate"),
        (["new", "--name", "a", "--scope", "push", "--max-bytes", "-1"], "--max-bytes"),
        (["new", "--name", "a", "--scope", "push", "--expires", "31.1.2027"], "--expires"),
        (["revoke", "--name", "a"], "no token of the name a"),
    ],
)
def test_the_command_says_what_is_wrong(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    path.touch()
    assert main(["token", *arguments, "--file", str(path)]) == 2
    assert why in capsys.readouterr().err
    assert path.read_text() == ""


def test_the_command_needs_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SURGSEG_TOKENS", raising=False)
    assert main(["token", "list"]) == 2
    assert "SURGSEG_TOKENS" in capsys.readouterr().err
