"""Uvicorn's server of WebSockets, mended where clients that break the protocol made it hang, or log a traceback."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

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

    def handle_parser_exception(self) -> None:
        """The client has broken the protocol. To go on sending would else be an error of ours, and not its leaving."""
        super().handle_parser_exception()
        self.disconnected = True
