"""One HTTP/1.1 connection: uvicorn's, and what that lacks towards careless and hostile clients.

- A request has limits from its first byte on: for the size of its header block, and for the time
  that its header block takes.
- What uvicorn answers with plain text, or not at all, gets an error in the form of the API.
- The body of a request with ``Upgrade: h2c`` is read. The parser stops at such a header block, as
  RFC 9113 no longer knows this upgrade; a second parser then reads the rest.
- Trailers do not become headers of the request.
- Of pipelined requests, all hear when the client leaves, and none stops the reading, which would
  hide that the client left. What exceeds `_MAX_PIPELINED_BYTES` is not read: the connection closes
  after the responses before it.
- A response that ends before its request closes the connection, but not before the client had time
  to read it: a closed socket with unread data would be reset, and the response with it.

Rules of framing are those of RFC 9112, sections 3, 6, 7 and 9.
"""

import asyncio
import re
from enum import Enum
from typing import TYPE_CHECKING, Final, NoReturn, cast
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tidegate.gateway.errors import ApiError
from tidegate.gateway.http_server.exchanges import Exchange, Output
from tidegate.gateway.http_server.refusals import (
    encoded_refusal,
    header_block_too_large,
    header_block_too_late,
    not_http,
    too_many_connections,
)
from tidegate.gateway.interruptions import shutdown_error
from tidegate.gateway.observing.metrics import count_refusal

if TYPE_CHECKING:
    from tidegate.gateway.http_server.connections import Connections

__all__ = ["GatewayProtocol"]

_NEVER: Final = float("inf")
_LINGER_S: Final = 1.0
_MAX_PIPELINED_BYTES: Final = 1 << 20
_MAX_PIPELINED: Final = 64

# Two of these would let a proxy and the gateway understand a request differently.
_ONCE: Final = {
    b"host": 1,
    b"authorization": 2,
    b"content-type": 4,
    b"expect": 8,
    b"transfer-encoding": 16,
    b"x-api-key": 32,
    b"api-key": 64,
}
_HOST: Final = _ONCE[b"host"]
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class _Phase(Enum):
    IDLE = "between two requests"
    HEAD = "in a header block"
    BODY = "in a body"


# Looking up the members of an enum costs as much as the rest of a callback.
_IDLE, _HEAD, _BODY = _Phase


class _RefusedError(Exception):
    """Stops the parser; the connection knows why."""


class GatewayProtocol(HttpToolsProtocol):
    """A connection.

    Attributes:
        expires_s: When it has waited too long for its client, in seconds of the event loop's clock.
    """

    server_state: "Connections"
    expires_s = _NEVER
    _phase = _IDLE
    _running: Exchange | None = None
    _refusal: ApiError | None = None
    _last_response = b""
    _is_deaf = False
    _is_lingering = False
    _is_replaying = False
    _is_new_head = False
    _has_new_body = False
    _chunk_bytes = 0
    _head_bytes = 0
    _foreign_bytes = 0
    _silent_bytes = 0
    _unsent_bytes = 0
    _queued_bytes = 0
    _seen = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accepts a connection, or refuses it when there are too many."""
        super().connection_made(transport)
        self._output = cast("asyncio.Transport", Output(self))
        limits = self.server_state.limits
        self.expires_s = self.loop.time() + limits.idle_timeout_s
        if self.server_state.made() > limits.max_connections:
            self._phase = _HEAD
            self._refuse(too_many_connections(limits.max_connections))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells every request of the connection that its client has left."""
        del exc
        self.server_state.lost(self)
        for exchange in self._unanswered():
            exchange.leave()
        self.pipeline.clear()
        self.flow.resume_writing()
        self._is_deaf = True
        # Cycles would keep the connection and its requests until the garbage collector runs.
        self.parser = self.cycle = self._output = None  # type: ignore[assignment]
        self._running = None

    def data_received(self, data: bytes) -> None:
        """Parses what the client sent."""
        if self._is_deaf:
            return
        self._chunk_bytes = len(data)
        self._is_new_head = self._has_new_body = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._is_deaf:
                self._refuse(self._refusal or not_http(error))
        else:
            if self._phase is not _IDLE:
                self._await_rest()

    def _await_rest(self) -> None:
        """Checks a request of which this was not the last part."""
        limits = self.server_state.limits
        if self._phase is _BODY:
            # What is neither header nor body is a trailer or an extension of a chunk.
            self._silent_bytes += 0 if self._has_new_body else self._chunk_bytes
            if self._silent_bytes > limits.max_header_bytes:
                self._refuse(header_block_too_large(limits.max_header_bytes))
            return
        self._head_bytes += self._chunk_bytes
        if self._is_new_head:
            # Some of these bytes may belong to the request before.
            self._foreign_bytes = self._chunk_bytes
            self.expires_s = self.loop.time() + limits.header_timeout_s
        elif self._head_bytes - self._foreign_bytes > limits.max_header_bytes:
            self._refuse(header_block_too_large(limits.max_header_bytes))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Goes on after a header block with ``Upgrade``, at which the parser has stopped."""
        framing = [
            name + b": " + value
            for name, value in self.headers
            if name in {b"content-length", b"transfer-encoding"}
        ]
        if not self.cycle.keep_alive:
            framing.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_replaying = True
        self.parser.feed_data(b"\r\n".join((b"POST / HTTP/1.1", *framing, b"", b"")))
        self._is_replaying = False
        if rest:
            self.data_received(rest)

    def on_message_begin(self) -> None:
        """Begins a request."""
        if self._is_replaying:
            return
        if self._is_deaf:
            raise _RefusedError
        super().on_message_begin()
        self._phase = _HEAD
        self._is_new_head = True
        self._head_bytes = self._silent_bytes = self._seen = 0

    def on_url(self, url: bytes) -> None:
        """Takes a part of the target."""
        if not self._is_replaying:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header; ignores trailers."""
        if self._phase is not _HEAD or self._is_replaying:
            return
        name = name.lower()
        if bit := _ONCE.get(name):
            if self._seen & bit:
                self._stop(400, f"the request has two {name.decode()} headers; send one")
            self._seen |= bit
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                self._stop(501, "the only transfer-encoding that the gateway takes is chunked")
            if name == b"expect":
                if value.lower() != b"100-continue":
                    self._stop(417, "the only expectation that the gateway meets is 100-continue")
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Starts to answer the request, or queues it behind those before it."""
        if self._is_replaying:
            return
        limits = self.server_state.limits
        if self._head_bytes + self._chunk_bytes > limits.max_header_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.max_header_bytes:
                self._stop_with(header_block_too_large(limits.max_header_bytes))
        version = self.parser.get_http_version()
        self._fill_scope(version)
        exchange = Exchange(
            scope=self.scope,
            transport=self._output,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version == "1.1" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        exchange.connection = self
        self.cycle = exchange
        self._phase = _BODY
        self.expires_s = _NEVER
        if self._running is None:
            self._run(exchange)
            return
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._ignore_rest()
        self.pipeline.appendleft((exchange, self.app))

    def _fill_scope(self, version: str) -> None:
        scope = self.scope
        method = self.parser.get_method().decode("ascii")
        if version != "1.1":
            if version != "1.0":
                self._stop(505, f"the gateway does not speak HTTP/{version}; use HTTP/1.1")
            if self._seen & _ONCE[b"transfer-encoding"]:
                self._stop(400, "HTTP/1.0 has no transfer-encoding; send content-length")
            scope["http_version"] = version
        elif not self._seen & _HOST:
            self._stop(400, "the request has no host header")
        if method == "CONNECT":
            self._stop(405, "the gateway is no proxy: it does not take CONNECT")
        scope["method"] = method
        target = httptools.parse_url(self.url)
        scope["raw_path"] = raw_path = target.path or b"/"
        scope["query_string"] = target.query or b""
        path = raw_path.decode("ascii")
        if "%" in path:
            path = self._unescaped(path)
        scope["path"] = path

    def _unescaped(self, path: str) -> str:
        if _BAD_ESCAPE.search(path):
            self._stop(400, "the path has a % that two hexadecimal digits do not follow; write %25")
        try:
            unescaped = unquote_to_bytes(path).decode()
        except UnicodeDecodeError:
            self._stop(400, "the escapes in the path are not UTF-8")
        if _CONTROL.search(unescaped):
            self._stop(400, "the path has an escaped control character")
        return unescaped

    def _run(self, exchange: Exchange) -> None:
        self._running = exchange
        # The middleware takes it out at the end: it is a cycle, as the exchange has the scope too.
        exchange.scope["state"]["exchange"] = exchange
        self._start_asgi_task(exchange, self.app)

    def on_body(self, body: bytes) -> None:
        """Takes a part of a body."""
        exchange = self.cycle
        if self._is_deaf or exchange.response_complete:
            return
        self._has_new_body = True
        self._silent_bytes = 0
        exchange.body += body
        if exchange is self._running:
            if len(exchange.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            exchange.message_event.set()
            return
        self._queued_bytes += len(body)
        if self._queued_bytes > _MAX_PIPELINED_BYTES:
            self.pipeline.popleft()
            self._ignore_rest()

    def on_message_complete(self) -> None:
        """Ends a request."""
        if self.parser.should_upgrade() or self._is_deaf:
            return
        self._phase = _IDLE
        exchange = self.cycle
        exchange.more_body = False
        exchange.message_event.set()
        if not exchange.keep_alive:
            # RFC 9112, section 9.6: what comes after a request with "close" is not processed.
            self._is_deaf = True

    def on_response_complete(self) -> None:
        """Goes on with the next request of the pipeline, or waits for one."""
        self.server_state.total_requests += 1
        self._running = None
        if self.transport.is_closing() or self._is_lingering:
            return
        self.flow.resume_reading()
        if self.pipeline:
            exchange, _ = self.pipeline.pop()
            self._queued_bytes -= len(exchange.body)
            self._run(cast("Exchange", exchange))
        elif self._is_deaf:
            if self._last_response:
                self.transport.write(self._last_response)
            self.close()
        elif self._phase is _IDLE:
            if self.server_state.stopped:
                self.close()
            else:
                self.expires_s = self.loop.time() + self.server_state.limits.idle_timeout_s

    def close(self) -> None:
        """Closes the connection once its client could read the last response."""
        if self.transport.is_closing() or self._is_lingering:
            return
        is_read = self._phase is _IDLE and not self._last_response
        self._is_deaf = self._is_lingering = True
        self.flow.resume_reading()
        limit_s = _LINGER_S
        if self.transport.get_write_buffer_size():
            limit_s = self.server_state.limits.stalled_limit_s
        self.expires_s = self.loop.time() + limit_s
        if is_read:
            self.transport.close()
        elif self.transport.can_write_eof():
            self.transport.write_eof()

    def expire(self) -> None:
        """Ends the connection, whose client took too long."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent_bytes:
            # The client is slow to read a response, but it does read.
            self._unsent_bytes = unsent
            self.expires_s = self.loop.time() + self.server_state.limits.stalled_limit_s
        elif self._is_lingering or unsent:
            self.transport.abort()
        elif self._phase is _HEAD:
            self._refuse(header_block_too_late(self.server_state.limits.header_timeout_s))
        else:
            self.close()

    def shutdown(self) -> None:
        """Closes the connection if it is idle."""
        if self._phase is _IDLE and self._running is None:
            self.close()

    def refuse_incomplete(self) -> bool:
        """Ends a request that is still on its way with 503; returns whether there was one."""
        running = self._running
        is_reading = running is not None and running.more_body and not running.response_started
        if self._is_deaf or not (is_reading or (running is None and self._phase is _HEAD)):
            return False
        self._refuse(shutdown_error())
        return True

    def give_up(self) -> None:
        """Ends the connection: with 503 if no response has begun, else by a reset."""
        running = self._running
        if running is not None and not running.response_started and not running.disconnected:
            self._answer_instead(running, shutdown_error())
        elif running is not None:
            running.abort()
        else:
            self.close()

    def _unanswered(self) -> list[Exchange]:
        running = [self._running] if self._running is not None else []
        return [*running, *(cast("Exchange", exchange) for exchange, _ in self.pipeline)]

    def _stop(self, status: int, message: str) -> NoReturn:
        self._stop_with(ApiError(status, message))

    def _stop_with(self, error: ApiError) -> NoReturn:
        self._refusal = error
        raise _RefusedError

    def _ignore_rest(self) -> None:
        self._is_deaf = True
        raise _RefusedError

    def _refuse(self, error: ApiError) -> None:
        """Answers the request that is being read with an error, and reads nothing after it."""
        running, phase = self._running, self._phase
        self._is_deaf = True
        self.expires_s = _NEVER
        if running is None:
            self._write_last(error)
        elif phase is _BODY and self.cycle is running:
            if running.response_started:
                running.keep_alive = False
            else:
                self._answer_instead(running, error)
        else:
            if phase is _BODY:
                self.pipeline.popleft()
            self._last_response = self._encoded(error)

    def _answer_instead(self, exchange: Exchange, error: ApiError) -> None:
        exchange.leave()
        self._running = None
        self.pipeline.clear()
        self._phase = _BODY
        self._write_last(error)

    def _write_last(self, error: ApiError) -> None:
        self._last_response = self._encoded(error)
        self.transport.write(self._last_response)
        self.close()

    def _encoded(self, error: ApiError) -> bytes:
        count_refusal(error.status)
        target = getattr(self, "url", b"").decode("latin-1")
        return encoded_refusal(error, target, self.server_state.default_headers)
