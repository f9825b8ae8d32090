"""Uvicorn's server of WebSockets, mended where clients that break the protocol made it hang, or log a traceback."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

_INVALID_DATA = 1007
_UNREADABLE = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection. On the event loop."""

    def data_received(self, data: bytes) -> None:
        """Bytes have come. A handshake whose head is too long, or has a body, would else be left without an answer."""
        super().data_received(data)
        if self.conn.handshake_exc is None or self.handshake_complete or self.handshake_initiated:
            return
        self.handshake_complete = self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()) or _UNREADABLE)
        self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """A message is whole. Text that is no UTF-8 would else be a traceback, or two."""
        if self.curr_msg_data_type != "text" or _is_text(b"".join(self.frames)):
            super().send_receive_event_to_app()
            return
        self.frames = []
        if self.close_sent or self.conn.state is not State.OPEN:
            self.transport.close()
            return
        self.conn.fail(_INVALID_DATA, "text that is no UTF-8")
        self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        """The client has broken the protocol. To go on sending would else be an error of ours, and not its leaving."""
        super().handle_parser_exception()
        self.disconnected = True


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
