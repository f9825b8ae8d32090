"""What a service asks for before others than its own machine can reach it, and TLS."""

from __future__ import annotations

import argparse
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme

from service.__main__ import main
from service.access.scopes import Scope
from service.access.token_file import add_token
from service.access.tokens import Token, hash_secret
from service.bench.service_metrics import scrape
from service.client import Client
from service.credentials import Credentials, add_credential_arguments, read_credentials
from service.errors import InvalidRequestError, UnavailableError
from tests.conftest import Server, start_server

FLAT_HWC = np.full((72, 128, 3), 200, np.uint8)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def folder(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`server.pem` and `server.key`, of the authority in `ca.pem`; `other.key` is another's."""
    made = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(made / "server.pem"))
    certificate.private_key_pem.write_to_path(str(made / "server.key"))
    authority.issue_cert("127.0.0.1").private_key_pem.write_to_path(str(made / "other.key"))
    authority.cert_pem.write_to_path(str(made / "ca.pem"))
    return made


@pytest.fixture(scope="module")
def encrypted(small_bundle: Path, folder: Path) -> Iterator[Server]:
    running = start_server(
        *("--port", "0", "--bundle", str(small_bundle)),
        SURGSEG_TLS_CERTIFICATE=str(folder / "server.pem"),
        SURGSEG_TLS_KEY=str(folder / "server.key"),
    )
    yield running
    assert running.stop() == 0


def test_pictures_and_streams_go_over_tls(
    encrypted: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encrypted.url.startswith("https://")
    with Client(encrypted.url, authority=folder / "ca.pem") as client:
        assert client.segment(FLAT_HWC).mask_hw.all()
        with client.stream() as stream:
            stream.push(FLAT_HWC)
            assert [message.sequence for message in stream.finish()] == [1]
    assert scrape(encrypted.url, Credentials(authority=folder / "ca.pem")).segmented == 2
    assert main(["ready", "--url", encrypted.url, "--ca", str(folder / "ca.pem")]) == 0
    assert main(["ready", "--url", encrypted.url]) == 1
    assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().out


def test_a_certificate_of_nobody_we_trust_is_refused(encrypted: Server) -> None:
    with Client(encrypted.url) as client:
        for ask in (client.model, client.stream):
            with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
                ask()


def test_nothing_older_than_tls_1_2_and_nothing_unencrypted(encrypted: Server, folder: Path) -> None:
    address = ("127.0.0.1", int(encrypted.url.rpartition(":")[2]))
    for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(address) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as made,
        ):
            assert made.version() in ("TLSv1.2", "TLSv1.3")
    old = ssl.create_default_context(cafile=folder / "ca.pem")
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(address) as raw,
        pytest.raises(ssl.SSLError),
        old.wrap_socket(raw, server_hostname="127.0.0.1"),
    ):
        pass
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(encrypted.url.replace("https", "http") + "/healthz")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"HOST": "0.0.0.0"}, "SURGSEG_OPEN=true"),
        ({"HOST": "::"}, "there are no tokens"),
        ({"HOST": "0.0.0.0", "TOKENS": ""}, "there are no tokens"),
        ({"TOKENS": "nowhere"}, "The file of tokens nowhere cannot be used"),
        ({"TOKENS": "{folder}/server.pem"}, "Line 1 of"),
        ({"TLS_CERTIFICATE": "nowhere"}, "No such file"),
        ({"TLS_CERTIFICATE": "{folder}/server.pem"}, "PEM"),
        ({"TLS_CERTIFICATE": "{folder}/server.pem", "TLS_KEY": "{folder}/other.key"}, "KEY_VALUES_MISMATCH"),
        ({"TLS_KEY": "{folder}/server.key"}, "SURGSEG_TLS_CERTIFICATE is not"),
        ({"ORIGINS": "https://a", "LOG_FORMAT": "xml"}, "SURGSEG_LOG_FORMAT"),
    ],
)
def test_a_service_that_would_not_be_safe_does_not_start(
    settings: dict[str, str],
    why: str,
    folder: Path,
    small_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"SURGSEG_{name}", value.format(folder=folder))
    with keep_logging():
        assert main(["serve", "--port", "0", "--bundle", str(small_bundle)]) == 2
    printed = capsys.readouterr().err
    assert why in printed
    assert "Traceback" not in printed


class keep_logging:  # noqa: N801 - reads as a statement
    """The root logger as it was; `surgseg serve` sets its own up."""

    def __enter__(self) -> None:
        root = logging.getLogger()
        self._before = list(root.handlers), root.level

    def __exit__(self, *_: object) -> None:
        root = logging.getLogger()
        root.handlers[:], level = self._before
        root.setLevel(level)


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(
    folder: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"open sesame"),
    )
    (folder / "locked.key").write_bytes(locked)
    monkeypatch.setenv("SURGSEG_TLS_CERTIFICATE", str(folder / "server.pem"))
    monkeypatch.setenv("SURGSEG_TLS_KEY", str(folder / "locked.key"))
    with keep_logging():
        assert main(["serve", "--port", "0", "--bundle", str(small_bundle)]) == 2
    assert "no passphrase" in capsys.readouterr().err


@pytest.mark.parametrize("has_tokens", [True, False])
def test_others_are_served_with_tokens_or_when_it_is_said_by_name(
    has_tokens: bool, small_bundle: Path, tmp_path: Path
) -> None:
    environment: dict[str, Any] = {"SURGSEG_OPEN": "true"}
    if has_tokens:
        add_token(tmp_path / "tokens", Token("a", frozenset({Scope.VIEW}), hash_secret("secret")))
        environment = {"SURGSEG_TOKENS": str(tmp_path / "tokens")}
    running = start_server(
        *("--port", "0", "--host", "0.0.0.0", "--bundle", str(small_bundle)), **environment
    )
    try:
        url = running.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/readyz").status_code == (401 if has_tokens else 200)
        warning = "not encrypted on the way" if has_tokens else "SURGSEG_OPEN: everybody"
        assert [line for line in running.output if "WARNING" in line and warning in line]
    finally:
        assert running.stop() == 0


def read_options(*arguments: str) -> Credentials:
    parser = argparse.ArgumentParser()
    add_credential_arguments(parser)
    return read_credentials(parser.parse_args(arguments))


def test_credentials_come_from_options_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SURGSEG_TOKEN", raising=False)
    monkeypatch.delenv("SURGSEG_CA", raising=False)
    assert read_options() == Credentials()
    monkeypatch.setenv("SURGSEG_TOKEN", "from-environment")
    monkeypatch.setenv("SURGSEG_CA", "ca.pem")
    assert read_options() == Credentials("from-environment", Path("ca.pem"))
    (tmp_path / "token").write_text(" from-file\n")
    shown = read_options("--token-file", str(tmp_path / "token"), "--ca", "other.pem")
    assert shown == Credentials("from-file", Path("other.pem"))
    assert "from-file" not in repr(shown)
    for text in ("", "two words", None):
        path = tmp_path / "wrong"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(InvalidRequestError, match="There is no token in"):
            read_options("--token-file", str(path))
    with pytest.raises(InvalidRequestError, match="characters that no token has"):
        Client("http://127.0.0.1:1", token="a\r\nHost: evil")
    with pytest.raises(InvalidRequestError, match="authority"):
        Client("http://127.0.0.1:1", authority=tmp_path / "token")
