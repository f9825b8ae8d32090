"""Where pulled streams come from in tests: video files, a real RTSP server, MPEG-TS over UDP."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.bitstreams import draw_code

FPS = 25
_DEBIAN_PYTHON = "/usr/bin/python3"
_NEEDS = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
_SENDER = Path(__file__).with_name("udp_sender.py")
_SERVER = Path(__file__).with_name("rtsp_server.py")


def write_video(path: Path, images: Iterable[np.ndarray], *, b_frames: int = 0, keys_every: int = 10) -> None:
    """Encode uint8 RGB pictures of one size as H.264, 25 a second, into a container that the name tells."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FPS)
        stream.options = {"preset": "ultrafast", "bf": str(b_frames), "g": str(keys_every)}
        for number, image_hwc in enumerate(images):
            if not number:
                stream.height, stream.width = image_hwc.shape[:2]
            frame = av.VideoFrame.from_ndarray(image_hwc, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_codes(path: Path, numbers: Sequence[int], **options: int) -> None:
    """A video of the pictures of these numbers."""
    write_video(path, (draw_code(number) for number in numbers), **options)


def find_free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RtspServer:
    """A real RTSP server in a process of its own, on a port that stays the same when it starts again."""

    def __init__(self, units: list[bytes], folder: Path, secret: str = "") -> None:
        if (
            not Path(_DEBIAN_PYTHON).exists()
            or subprocess.run([_DEBIAN_PYTHON, "-c", _NEEDS], capture_output=True, check=False).returncode
        ):
            pytest.skip("Debian's GStreamer is not here: gir1.2-gst-rtsp-server-1.0 and python3-gi")
        self._units = folder / "units"
        self._units.write_bytes(b"".join(len(unit).to_bytes(4, "big") + unit for unit in units))
        self._secret = secret
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"rtsp://{self._secret + '@' if self._secret else ''}127.0.0.1:{self.port}/scope"

    def start(self) -> None:
        command = [_DEBIAN_PYTHON, str(_SERVER), str(self._units), str(FPS), str(self.port)]
        command += [self._secret] if self._secret else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def sending_datagrams(sender: str, file: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Send a file as MPEG-TS, over and over, at the speed of its clock: by `ffmpeg`, or by our own small `pyav`."""
    address = f"udp://127.0.0.1:{port}?pkt_size=1316"
    if sender == "ffmpeg":
        if shutil.which("ffmpeg") is None:
            pytest.skip("Debian's ffmpeg is not here")
        options = ["-loglevel", "error", "-re", "-stream_loop", "-1", "-i", str(file), "-c", "copy"]
        command = ["ffmpeg", *options, "-f", "mpegts", address]
    else:
        command = [sys.executable, str(_SENDER), str(file), address]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
