"""An RTSP server of real H.264: `/usr/bin/python3 rtsp_server.py UNITS FPS PORT`, with Debian's GStreamer.

UNITS holds access units in Annex B form, each behind 4 bytes of its length, key frames with their parameter sets. They
are sent in turn, over and over, to whoever comes to rtsp://127.0.0.1:PORT/scope over TCP or UDP (port 0: a free one).
With user:password as a further argument it asks for them. Prints the port when it listens. Run by Debian's Python,
where GStreamer's bindings are.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - the versions must be named first

LAUNCH = (
    "( appsrc name=camera is-live=true do-timestamp=true format=time block=false "
    "caps=video/x-h264,stream-format=byte-stream,alignment=au ! rtph264pay name=pay0 pt=96 )"
)


def read_units(path: str) -> list[bytes]:
    data, units, at = Path(path).read_bytes(), [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        units.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return units


def feed(media: Any, units: list[bytes], fps: float) -> None:
    """Send the next unit to a media that has just been made, again and again, until it is gone."""
    camera = media.get_element().get_child_by_name("camera")
    turn = itertools.cycle(units)
    is_gone = []
    media.connect("unprepared", is_gone.append)

    def push() -> bool:
        if is_gone:
            return False
        camera.emit("push-buffer", Gst.Buffer.new_wrapped(next(turn)))
        return True

    GLib.timeout_add(round(1000 / fps), push)


def protect(server: Any, factory: Any, secret: str) -> None:
    """Let nobody in without that user and password."""
    user, _, password = secret.partition(":")
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "surgeon")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    for right in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role("surgeon", right, True)
    factory.set_permissions(permissions)


def main(units_path: str, fps: str, port: str, secret: str = "") -> None:
    Gst.init(None)
    units = read_units(units_path)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(LAUNCH)
    factory.set_shared(True)
    factory.connect("media-configure", lambda _, media: feed(media, units, float(fps)))
    server = GstRtspServer.RTSPServer()
    if secret:
        protect(server, factory, secret)
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/scope", factory)
    if not server.attach(None):
        raise SystemExit(f"port {port} is taken")
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
