"""Routes for tests of the gateway's HTTP server: a test controls when they answer."""

import asyncio
import hashlib

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.bodies import read_body
from tidegate.gateway.event_stream import EventStream
from tidegate.gateway.interruptions import interruptible
from tidegate.gateway.parts import parts_of
from tidegate.gateway.responses import json_response, openai_error


class HeldRequests:
    """What the routes have seen, and when they may go on.

    Attributes:
        begun: How many requests wait, or have waited.
        cancelled: How many of them ended early.
        go_on: Lets them end.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go_on = asyncio.Event()

    async def wait(self) -> None:
        """Waits until the test lets the request go on."""
        self.begun += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def until(self, *, begun: int = 0, cancelled: int = 0) -> None:
        """Waits until that many requests have begun, or ended early."""
        async with asyncio.timeout(10):
            while self.begun < begun or self.cancelled < cancelled:
                await asyncio.sleep(0.001)


def add_test_routes(app: FastAPI) -> HeldRequests:
    """Adds ``/test/echo``, ``/test/hold`` and ``/test/stream``; returns the held requests."""
    held = HeldRequests()

    async def body_of(request: Request) -> bytes:
        settings = parts_of(request).settings
        return await read_body(request, settings.max_body_bytes, settings.body_timeout_s)

    async def echo(request: Request) -> Response:
        body = await body_of(request)
        return json_response(
            {
                "method": request.method,
                "path": request.scope["path"],
                "query": request.scope["query_string"].decode(),
                "headers": {
                    name.decode(): value.decode("latin-1")
                    for name, value in request.scope["headers"]
                },
                "bytes": len(body),
                "sha256": hashlib.sha256(body).hexdigest(),
            }
        )

    async def hold(request: Request) -> Response:
        await body_of(request)
        async with interruptible(request.receive, parts_of(request).in_flight):
            await held.wait()
        return json_response({"held": request.scope["path"]})

    async def stream(request: Request) -> Response:
        await body_of(request)
        count = int(request.query_params.get("frames", 1))
        size = int(request.query_params.get("size", 1))

        async def frames():
            for number in range(count):
                yield b"data: %d %s\n\n" % (number, b"x" * size)
            await held.wait()

        return EventStream(
            request,
            frames(),
            error_frame=lambda error: (
                b"data: " + msgspec.json.encode(openai_error(error)) + b"\n\n"
            ),
        )

    async def fail(request: Request) -> Response:
        raise RuntimeError("a secret of the gateway")

    app.add_api_route("/test/echo", echo, methods=["GET", "POST"])
    app.add_api_route("/test/echo/{name:path}", echo, methods=["GET"])
    app.add_api_route("/test/hold", hold, methods=["POST"])
    app.add_api_route("/test/stream", stream, methods=["POST"])
    app.add_api_route("/test/fail", fail, methods=["GET"])
    return held
