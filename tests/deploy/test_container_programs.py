"""What containers run beside the service: the probe, against real servers, and the scripts of the GPU image."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Server

PROBE = REPOSITORY / "docker" / "probe.py"


class Answers(ThreadingHTTPServer):
    """Answers every path with what the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.bodies = [""]
        self.tokens: list[str | None] = []

    def handle_error(self, *_: object) -> None:
        """Who speaks plainly to TLS is one of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        self.end_headers()
        bodies = self.server.bodies
        self.wfile.write((bodies.pop(0) if len(bodies) > 1 else bodies[0]).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[Answers]:
    with Answers() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def probe(port: int, *arguments: str, token: Path = Path("/nowhere")) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-IS", str(PROBE), "--token", str(token), *arguments]
    environment = {**os.environ, "SURGSEG_PORT": str(port)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)


def test_a_real_service_is_ready_and_idle(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    assert probe(port, "ready").returncode == 0
    assert probe(port, "idle", "--least-s", "0").returncode == 0


def test_a_service_that_is_not_ready_says_why(answers: Answers) -> None:
    answers.status, answers.bodies = 503, ['{"detail": "No inference has succeeded lately."}']
    found = probe(answers.server_port, "ready")
    assert found.returncode == 1
    assert found.stderr.startswith("The service answers 503: ")
    assert "No inference" in found.stderr


def test_a_token_is_sent_where_there_is_one(answers: Answers, tmp_path: Path) -> None:
    token = tmp_path / "view-token"
    token.write_text("secret\n")
    assert probe(answers.server_port, "ready", token=token).returncode == 0
    assert answers.tokens == ["Bearer secret"]
    answers.status = 401
    refused = probe(answers.server_port, "ready")
    assert refused.returncode == 1
    assert "put a token with the scope view into /nowhere" in refused.stderr


def test_a_service_with_a_certificate_is_asked_by_tls(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not here")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    files = ["-subj", "/CN=or-7", "-keyout", key, "-out", certificate]
    subprocess.run([*made, *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    answers.socket = context.wrap_socket(answers.socket, server_side=True)
    assert probe(answers.server_port, "ready").returncode == 1
    monkeypatch.setenv("SURGSEG_TLS_CERTIFICATE", certificate)
    assert probe(answers.server_port, "ready").returncode == 0


@pytest.mark.parametrize("command", ["ready", "idle"])
def test_nobody_there_is_no_traceback(command: str) -> None:
    options = ["--least-s", "0"] if command == "idle" else []
    found = probe(1, command, *options)
    assert found.returncode == 1
    assert found.stderr.startswith("The service does not answer: ")
    assert found.stderr.count("\n") == 1


def test_idle_waits_for_the_last_stream(answers: Answers) -> None:
    answers.bodies = ["surgseg_streams 1.0\n", "surgseg_streams_total 9\nsurgseg_streams 0.0\n"]
    began_at = time.monotonic()
    assert probe(answers.server_port, "idle", "--least-s", "0").returncode == 0
    assert len(answers.tokens) == 2
    assert time.monotonic() - began_at > 1.0


def test_idle_gives_up_when_its_time_is_over(answers: Answers) -> None:
    answers.bodies = ["surgseg_streams 3.0\n"]
    found = probe(answers.server_port, "idle", "--least-s", "0", "--most-s", "1")
    assert (found.returncode, found.stderr) == (1, "3 streams are still open after 1 s.\n")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with what serve-gpu calls; the test writes `build-engine`."""
    write_program(tmp_path / "surgseg", 'echo "served $*"')
    return tmp_path


def write_program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def serve_gpu(programs: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [str(REPOSITORY / "docker" / "serve_gpu.sh"), *arguments]
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_gpu_container_builds_first_and_then_serves(programs: Path) -> None:
    write_program(programs / "build-engine", "echo built")
    process = serve_gpu(programs, "--port", "9000")
    assert process.communicate(timeout=20)[0] == "built\nserved serve --port 9000\n"
    assert process.returncode == 0


def test_without_an_engine_nothing_is_served(programs: Path) -> None:
    write_program(programs / "build-engine", "echo no GPU; exit 2")
    process = serve_gpu(programs)
    assert process.communicate(timeout=20)[0] == "no GPU\n"
    assert process.returncode == 2


def test_a_build_is_told_of_sigterm(programs: Path) -> None:
    line = "trap 'echo told; exit 143' TERM; echo building; while :; do sleep 0.1; done"
    write_program(programs / "build-engine", line)
    process = serve_gpu(programs)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "building\n"
        process.terminate()
        assert process.communicate(timeout=10)[0] == "told\n", "nothing is served"
        assert process.returncode != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_the_engine_is_built_for_what_is_served(tmp_path: Path) -> None:
    write_program(tmp_path / "python", 'printf "%s\\n" "$@"')
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SURGSEG_BUNDLE": "/bundle of ours",
        "SURGSEG_ENGINES": "/engines",
        "SURGSEG_BATCH_SIZES": "1,2",
        "SURGSEG_PRECISION": "float16",
    }
    script = str(REPOSITORY / "docker" / "build_engine.sh")
    given = subprocess.run([script, "--force"], env=environment, capture_output=True, text=True, check=True)
    from model_export.__main__ import COMMANDS

    words = given.stdout.splitlines()
    assert words[:4] == ["-m", "model_export", "build", "/bundle of ours"]
    assert words[2] in COMMANDS
    options = dict(zip(words[4:-1:2], words[5:-1:2], strict=True))
    assert options == {
        "--runtime": "tensorrt",
        "--engines": "/engines",
        "--batch-sizes": "1,2",
        "--precision": "float16",
    }
    assert words[-1] == "--force"
