"""A cheap gRPC server of one version, with the faults of a bad candidate.

    python benchmarks/cluster/backend.py --name v2 --fail 0.05 --delay-s 0.1 --after-s 30

An incident of something behind all versions lasts as long as a file exists.

It answers ``/bench.Echo/Call`` with its name. A failed call names the version too, so that callers
can tell it from a call that was lost on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import time
from pathlib import Path

import grpc

INCIDENT_FAIL = 0.05
"""The share of calls that fail during an incident."""

_GRACE_S = 10.0


class Echo:
    """The server's method.

    Args:
        name: The version.
        fail: The share of calls that fail.
        delay_s: How much longer each call takes.
        after_s: From how many seconds after the first call on it is bad.
        base: The share of calls that fail from the start.
        incident: While this file exists, `INCIDENT_FAIL` of the calls fail too; None for never.
    """

    def __init__(
        self,
        name: str,
        fail: float,
        delay_s: float,
        after_s: float,
        base: float,
        incident: Path | None = None,
    ) -> None:
        self._name = name.encode()
        self._fail = fail
        self._delay_s = delay_s
        self._after_s = after_s
        self._base = base
        self._incident = incident
        self._first_s: float | None = None
        self._random = random.Random()

    async def call(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Answers with the version's name, or fails with it."""
        del request
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
        is_bad = now_s - self._first_s >= self._after_s
        if is_bad and self._delay_s:
            await asyncio.sleep(self._delay_s)
        fail = self._fail if is_bad else self._base
        if self._incident is not None and self._incident.exists():
            fail = max(fail, INCIDENT_FAIL)
        if self._random.random() < fail:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"injected {self._name.decode()}")
        return self._name


async def serve(port: int, echo: Echo) -> None:
    """Serves until SIGTERM."""
    server = grpc.aio.server()
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(echo.call)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Echo", handlers)])
    server.add_insecure_port(f"0.0.0.0:{port}")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(_GRACE_S)


def main() -> None:
    """Reads the command line, and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--fail", type=float, default=0.0)
    parser.add_argument("--base", type=float, default=0.0)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--after-s", type=float, default=0.0)
    parser.add_argument("--incident", type=Path, help="while this file exists, more calls fail")
    options = parser.parse_args()
    fail = max(options.fail, options.base)
    echo = Echo(
        options.name, fail, options.delay_s, options.after_s, options.base, options.incident
    )
    asyncio.run(serve(options.port, echo))


if __name__ == "__main__":
    main()
