"""A server and a caller that write down when each call came, and which split it followed.

    python benchmarks/cluster/timed_calls.py serve v1
    python benchmarks/cluster/timed_calls.py call 127.0.0.1:8500 200

The server answers with its version, the time by its clock, and the header `x-route`, in which a
proxy may have put the name of its route. The caller prints a line of JSON for each call, until
SIGTERM. Both run on one machine, so their clocks are one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PORT", "TimedCall", "read_calls"]

PORT: Final = 8500

_SERVICE: Final = "bench.Timed"
_DEADLINE_S: Final = 10.0
_CONNECTIONS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedCall:
    """A call that has ended.

    Attributes:
        began_s: When the caller began it, in seconds since the epoch.
        received_s: When the server had it; 0 if it failed.
        version: The version that answered; empty if it failed.
        route: The name of the route that it followed; empty if no proxy told it.
        error: Its status and message if it failed.
    """

    began_s: float
    received_s: float = 0.0
    version: str = ""
    route: str = ""
    error: str = ""


def read_calls(lines: Iterable[str]) -> list[TimedCall]:
    """The calls that a caller has printed; a last line may be incomplete."""
    return [TimedCall(**json.loads(each)) for each in lines if each.endswith("}\n")]


async def _serve(version: str) -> None:
    async def answer(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        received_s = time.time()
        routes = [value for key, value in context.invocation_metadata() or () if key == "x-route"]
        return f"{version} {received_s:.6f} {str(routes[-1]) if routes else ''}".encode()

    server = grpc.aio.server()
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, handlers)])
    server.add_insecure_port(f"0.0.0.0:{PORT}")
    await server.start()
    await _stopped().wait()
    await server.stop(1)


async def _call_steadily(target: str, rate: float) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options) for _ in range(_CONNECTIONS)]
    methods = itertools.cycle([each.unary_unary(f"/{_SERVICE}/Call") for each in channels])
    stopped = _stopped()
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    async with asyncio.TaskGroup() as calls:
        while not stopped.is_set():
            calls.create_task(_call(next(methods)))
            due_s = max(due_s + 1 / rate, loop.time() - 1)
            await asyncio.sleep(max(0.0, due_s - loop.time()))
    for each in channels:
        await each.close()


async def _call(method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
    began_s = time.time()
    try:
        answer = await method(b"", timeout=_DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        made = TimedCall(began_s=began_s, error=f"{error.code().name}: {error.details()}")
    else:
        version, received, route = answer.decode().split(" ", 2)
        made = TimedCall(began_s=began_s, received_s=float(received), version=version, route=route)
    sys.stdout.write(json.dumps(asdict(made)) + "\n")
    sys.stdout.flush()


def _stopped() -> asyncio.Event:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    return stopped


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(_serve(sys.argv[2]))
    else:
        asyncio.run(_call_steadily(sys.argv[2], float(sys.argv[3])))
