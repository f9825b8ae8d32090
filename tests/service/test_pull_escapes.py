"""What an allowed address could lead to: another server, or another file. Neither is opened."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from service.contract.model_card import InputSize
from service.contract.video import open_video_file
from service.errors import StreamError
from service.settings import Settings
from service.streams.decoder_sources import open_source
from service.streams.decoder_terms import DecoderTerms
from service.streams.pull_targets import PullRules
from tests.sources import write_video

OPTIONS_ALLOWED = "Public: OPTIONS, DESCRIBE, SETUP, PLAY"


class RtspGreeter:
    """An RTSP server that gives one answer to every request but OPTIONS, and counts who came."""

    def __init__(self, answer: str) -> None:
        self.visits = 0
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/scope"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.visits += 1
            with connection, connection.makefile("rwb") as stream:
                while lines := list(iter(lambda: stream.readline().strip().decode(), "")):
                    number = next(line for line in lines if line.lower().startswith("cseq"))
                    is_greeting = lines[0].startswith("OPTIONS")
                    answer = f"RTSP/1.0 200 OK\r\n{OPTIONS_ALLOWED}" if is_greeting else self._answer
                    stream.write(f"{answer}\r\n{number}\r\n\r\n".encode())
                    stream.flush()


@pytest.fixture
def elsewhere() -> Iterator[RtspGreeter]:
    server = RtspGreeter("RTSP/1.0 404 Not Found")
    yield server
    server.close()


@pytest.fixture
def redirecting(elsewhere: RtspGreeter) -> Iterator[RtspGreeter]:
    server = RtspGreeter(f"RTSP/1.0 302 Found\r\nLocation: {elsewhere.url}")
    yield server
    server.close()


def test_a_server_that_redirects_is_not_followed(redirecting: RtspGreeter, elsewhere: RtspGreeter) -> None:
    target = PullRules({"rtsp"}, {"127.0.0.1"}, None).admit(redirecting.url, "tcp")
    terms = DecoderTerms.read(Settings(_env_file=None), InputSize(height=32, width=64))
    job = replace(terms.plan_job("letterbox", is_lossless=False), url=target.url, options=target.options)
    with pytest.raises(StreamError, match="cannot be opened"):
        open_source(job)
    assert redirecting.visits == 1
    assert elsewhere.visits == 0
    with pytest.raises(av.error.FFmpegError):  # the test could fail: without our options FFmpeg does follow
        av.open(redirecting.url, format="rtsp", options={"rtsp_transport": "tcp"})
    assert elsewhere.visits == 1


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.mp4"
    write_video(path, [np.zeros((32, 64, 3), np.uint8)])
    return path


PLAYLISTS = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "hls-named-as-video.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "concat.ffconcat": "ffconcat version 1.0\nfile '{secret}'\n",
    "below.ffconcat": "ffconcat version 1.0\nfile 'copy.mp4'\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_is_no_video_whatever_it_is_called(name: str, secret: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(secret, folder / "copy.mp4")
    (folder / name).write_text(PLAYLISTS[name].format(secret=secret))
    with pytest.raises(StreamError, match="is not a video"):
        open_video_file(folder / name)
    open_video_file(folder / "copy.mp4").close()
