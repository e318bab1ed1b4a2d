"""A request and its response on a connection: uvicorn's, and what that lacks.

- An answer that begins before its request was read, or in a drain, closes the connection.
- HTTP/1.0 knows no chunks, so the end of the connection is the end of a body without a length.
- The end of a response does not close the connection before its client could read it.
"""

from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from collections.abc import Awaitable, MutableMapping

    from tidegate.gateway.http_server.protocol import GatewayProtocol

__all__ = ["Exchange", "Output"]

_UNKNOWN: Final = cast("int", float("inf"))

_send_part: Final = RequestResponseCycle.send


class Exchange(RequestResponseCycle):
    """A request and its response; ``scope["state"]["exchange"]``."""

    connection: "GatewayProtocol"
    _has_no_framing = False

    def send(self, message: Any) -> "Awaitable[None]":  # type: ignore[override]
        """Sends a part of the response."""
        if not self.response_started:
            self._begin(message)
        elif self._has_no_framing and not message.get("more_body", False):
            self.expected_content_length = len(message.get("body", b""))
        return _send_part(self, message)

    def _begin(self, message: "MutableMapping[str, Any]") -> None:
        connection = self.connection
        if self.more_body or (connection.server_state.draining and not connection.pipeline):
            self.keep_alive = False
        if self.scope["http_version"] == "1.0" and not any(
            name == b"content-length" for name, _ in message.get("headers", ())
        ):
            self._has_no_framing, self.chunked_encoding = True, False
            self.expected_content_length = _UNKNOWN
            self.keep_alive = False

    def leave(self) -> None:
        """Tells the application that the client has left."""
        self.disconnected = True
        self.message_event.set()

    def abort(self) -> None:
        """Resets the connection, so that the client sees that the response is incomplete."""
        self.leave()
        self.connection.transport.abort()


class Output:
    """The transport as exchanges see it: the end of a response does not close it too early."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, connection: "GatewayProtocol") -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.close
