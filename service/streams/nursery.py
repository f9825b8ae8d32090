"""Where decoders come from: `python -m service.streams.nursery FD`, a process that has imported everything and forks.

A fork takes a few milliseconds and shares the memory of the libraries; a new interpreter would take half a second and
80 MB. The nursery itself never touches a bitstream and has one thread, so that it can be forked and always answers. It
ends when the service's end of its socket closes, and the kernel ends its children with it.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import sys

from service.streams import decoder

BORN, DIED = b"B", b"D"
LIFE = struct.Struct(">cIi")  # what happened, to which process, with which wait status
REQUEST = b"N"


def main(descriptor: int) -> None:
    """Fork a decoder for each request, tell of each birth and each death, until the service is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which ends its decoders itself
    gc.collect()
    gc.freeze()  # so that children do not copy pages only to count references in them
    service = socket.socket(fileno=descriptor)
    children: dict[int, int] = {}  # pid by pidfd
    poll = select.poll()
    poll.register(service, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready == descriptor:
                if not _answer(service, children, poll):
                    return
            else:
                _bury(service, children.pop(ready), ready, poll)


def _answer(service: socket.socket, children: dict[int, int], poll: select.poll) -> bool:
    """Fork one decoder with the two descriptors that came; False when the service is gone."""
    try:
        message, descriptors, _, _ = socket.recv_fds(service, 16, 2)
    except OSError:
        return False
    if message != REQUEST or len(descriptors) != 2:
        return False
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _live(service, list(children), parent, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    life = os.pidfd_open(pid)
    children[life] = pid
    poll.register(life, select.POLLIN)
    socket.send_fds(service, [LIFE.pack(BORN, pid, 0)], [life])
    return True


def _live(service: socket.socket, siblings: list[int], parent: int, descriptors: list[int]) -> None:
    """The child's whole life. Never returns."""
    code = 1
    try:
        service.close()
        for sibling in siblings:
            os.close(sibling)
        decoder.main(parent, *descriptors)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it was, the nursery's own code must not go on in the child
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _bury(service: socket.socket, pid: int, life: int, poll: select.poll) -> None:
    poll.unregister(life)
    os.close(life)
    _, status = os.waitpid(pid, 0)
    service.send(LIFE.pack(DIED, pid, status))


if __name__ == "__main__":
    main(int(sys.argv[1]))
