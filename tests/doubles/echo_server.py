"""A gRPC server that reports itself in trailers as Tidegate's servers do."""

import asyncio
import sys

import grpc

SERVICE = "tidegate.test.v1.Echo"


class Echo:
    """A gRPC server of one version: echoes, fails, streams and waits.

    Attributes:
        go_on: While it is not set, streams wait after their first message, and ``Wait`` waits.
    """

    def __init__(self, version):
        self.version = version
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.metadata = []
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "Twice": grpc.stream_stream_rpc_method_handler(self.twice),
        }
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, handlers)]
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def tell(self, context, *trailers):
        self.metadata.append(dict(context.invocation_metadata()))
        version = ("tidegate-model-version", self.version)
        context.set_trailing_metadata((("tidegate-model", "echo"), version, *trailers))

    async def unary(self, request, context):
        self.tell(context)
        return request

    async def fail(self, request, context):
        self.tell(context)
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing", context.trailing_metadata())

    async def stream(self, request, context):
        """Sends three messages, and waits for the test after the first."""
        self.tell(context, ("tidegate-tokens-out", "3"), ("tidegate-finish", "stop"))
        yield b"1"
        await self.go_on.wait()
        yield b"2"
        yield b"3"

    async def wait(self, request, context):
        """Answers when the test lets it."""
        self.tell(context)
        await self.go_on.wait()
        return request

    async def twice(self, requests, context):
        self.tell(context)
        async for request in requests:
            yield request
            yield request


async def _serve(port, version):
    echo = Echo(version)
    echo.server.add_insecure_port(f"0.0.0.0:{port}")
    await echo.server.start()
    await echo.server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
