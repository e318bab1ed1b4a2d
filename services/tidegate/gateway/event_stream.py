"""A response of server-sent events, which costs little and cannot leak.

The response begins with the first frame, so an error before it has a status of its own. A model
that takes longer than the keep-alive interval begins the response with a comment instead: proxies
and clients cut connections that are silent for too long. Comments also fill later pauses.

A client that leaves, or the end of a drain, ends the frames' iterator at once, and with it the call
to the model. A client that does not read stops the iterator: `send` waits while the connection's
buffer is full, then nobody reads the call's stream, and gRPC's flow control reaches the engine.

The format is that of the HTML standard, section 9.2 (server-sent events).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.context import context_of
from tidegate.gateway.errors import ApiError, internal_error
from tidegate.gateway.interruptions import (
    Cause,
    ClientGoneError,
    Interruption,
    Receive,
    interruptible,
)
from tidegate.gateway.parts import parts_of
from tidegate.gateway.responses import error_response
from tidegate.runtime.logging import get_logger

__all__ = ["EventStream", "Send"]

_log = get_logger(__name__)

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_COMMENT: Final = b": keep-alive\n\n"
_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies such as nginx collect small writes unless they are told not to.
    (b"x-accel-buffering", b"no"),
)


class EventStream(Response):
    """Sends frames as they come.

    Args:
        request: The request; its body has been read.
        frames: The frames, each with its two line ends. The response closes the iterator in every
            case. An `ApiError` that it raises ends the stream: with its status if no frame was
            sent, else with the frame that `error_frame` makes.
        error_frame: Makes the frame of an error.
        end: The last frame, also after an error; empty for none.
        headers: Further headers.
    """

    def __init__(
        self,
        request: Request,
        frames: AsyncGenerator[bytes, None],
        *,
        error_frame: Callable[[ApiError], bytes],
        end: bytes = b"data: [DONE]\n\n",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = HTTPStatus.OK
        self.background = None
        self.body = b""
        self.raw_headers = [
            *_HEADERS,
            *((name.lower().encode(), value.encode()) for name, value in (headers or {}).items()),
        ]
        self._request = request
        self._frames = frames
        self._error_frame = error_frame
        self._end = end
        self._parts = parts_of(request)
        self._has_begun = False
        self._is_sending = False
        self._sent_at = 0.0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Sends the response."""
        in_flight = self._parts.in_flight
        try:
            async with aclosing(self._frames), interruptible(receive, in_flight) as interruption:
                await self._stream(send, interruption)
        except ClientGoneError:
            context_of(self._request).was_cut_off = True
            return
        except ApiError as error:
            if not self._has_begun:
                await error_response(self._request, error)(scope, receive, send)
                return
            await self._fail(send, error)
        except Exception:
            if not self._has_begun:
                raise
            _log.exception("a stream failed")
            await self._fail(send, internal_error())
        await self._send(send, self._end, more=False)

    async def _fail(self, send: Send, error: ApiError) -> None:
        context_of(self._request).was_cut_off = True
        await self._send(send, self._error_frame(error.without_retry()))

    async def _stream(self, send: Send, interruption: Interruption) -> None:
        self._sent_at = time.monotonic()
        keeping_alive = asyncio.create_task(self._keep_alive(send, interruption), name="keep-alive")
        try:
            async for frame in self._frames:
                interruption.is_sending = True
                await self._send(send, frame)
                interruption.is_sending = False
        finally:
            keeping_alive.cancel()

    async def _send(self, send: Send, frame: bytes, *, more: bool = True) -> None:
        self._is_sending = True
        if not self._has_begun:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            self._has_begun = True
        await send({"type": "http.response.body", "body": frame, "more_body": more})
        self._is_sending = False
        self._sent_at = time.monotonic()

    async def _keep_alive(self, send: Send, interruption: Interruption) -> None:
        """Sends a comment in each silence, and ends the stream of a client that does not read."""
        settings = self._parts.settings
        while True:
            silent_s = time.monotonic() - self._sent_at
            if self._is_sending and silent_s > settings.stalled_limit_s:
                interruption(Cause.CLIENT_GONE)
                return
            if self._is_sending:
                await asyncio.sleep(settings.keep_alive_s)
            elif silent_s < settings.keep_alive_s:
                await asyncio.sleep(settings.keep_alive_s - silent_s)
            else:
                await self._send(send, _COMMENT)
