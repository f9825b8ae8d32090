"""Sends a video file as MPEG-TS over UDP, over and over, at the speed of its clock: `udp_sender.py FILE ADDRESS`."""

from __future__ import annotations

import sys
import time

import av


def main(file: str, address: str) -> None:
    with av.open(file) as source, av.open(address, "w", format="mpegts") as target:
        video = source.streams.video[0]
        out = target.add_stream_from_template(video)
        start_at, base_pts, last_pts = time.monotonic(), 0, 0
        while True:
            for packet in source.demux(video):
                if packet.pts is None or packet.dts is None:
                    continue
                packet.pts, packet.dts = packet.pts + base_pts, packet.dts + base_pts
                last_pts = max(last_pts, packet.pts + (packet.duration or 0))
                assert packet.time_base is not None
                time.sleep(max(0.0, start_at + float(packet.dts * packet.time_base) - time.monotonic()))
                packet.stream = out
                target.mux_one(packet)
            base_pts = last_pts
            source.seek(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
