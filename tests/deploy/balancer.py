"""A real nginx on a free port, with the configuration that deploy/nginx ships."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import REPOSITORY

SHIPPED = REPOSITORY / "deploy" / "nginx" / "surgseg.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

_AROUND = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log stderr notice;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/surgseg.conf;
}}
"""


def write_configuration(folder: Path, port: int, replicas: Sequence[str]) -> Path:
    """The shipped file with these `HOST:PORT` for its own, inside a configuration that writes to `folder` only."""
    shipped = SHIPPED.read_text()
    addresses = iter(replicas)
    text, count = re.subn(r"server 127\.0\.0\.1:\d+", lambda _: f"server {next(addresses)}", shipped)
    assert count == len(replicas)
    assert text.count("listen 8000;") == 1
    (folder / "surgseg.conf").write_text(text.replace("listen 8000;", f"listen 127.0.0.1:{port};"))
    user = "user root;" if os.geteuid() == 0 else ""
    path = folder / "nginx.conf"
    path.write_text(_AROUND.format(folder=folder, user=user))
    return path


class Balancer:
    """nginx in front of `replicas`, each `HOST:PORT`; `url` is where it listens."""

    def __init__(self, folder: Path, replicas: Sequence[str]) -> None:
        assert NGINX is not None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        path = write_configuration(folder, port, replicas)
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen([NGINX, "-c", str(path), "-p", str(folder)])
        self._wait_to_listen(port)

    def stop(self) -> None:
        """End it, and with it every connection."""
        self._process.terminate()
        self._process.wait(10)

    def _wait_to_listen(self, port: int) -> None:
        ends_at = time.monotonic() + 10
        while time.monotonic() < ends_at and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("nginx does not listen")
